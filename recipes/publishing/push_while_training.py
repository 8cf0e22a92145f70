"""`push_to_hub: true` of a training: its checkpoints go to the Hub as they are saved, and its result at the end.

What is pushed and refused is that of `llava push model`, with its card. Checkpoints go up beside the training, without
their optimizer; where one does not get through, that is told, and the training goes on.
"""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import TrainerCallback, TrainerControl, TrainerState

from recipes.publishing.card_example import from_page
from recipes.publishing.push_checks import check_loads
from recipes.publishing.push_files import CARD, Selection, Upload, model_files
from recipes.publishing.push_secrets import check_contents
from recipes.publishing.push_upload import check_repo_id, make_repository, read_old_card, upload
from recipes.push import describe_model
from recipes.training.train_config import TrainConfig


def check_push(config: TrainConfig, use_peft: bool) -> None:
    """Before anything is loaded."""
    if not config.push_to_hub:
        return
    if not config.hub_model_id:
        raise ValueError("`push_to_hub` needs `hub_model_id`, such as ada/llava-small. Give it, or leave it out.")
    check_repo_id(config.hub_model_id, "`hub_model_id`")
    if use_peft:
        raise ValueError(
            "`push_to_hub` goes without `use_peft`: an adapter names its base by a path. When the training has ended, "
            "use `llava merge` and `llava push model`."
        )
    if config.hub_strategy not in ("every_save", "end"):
        raise ValueError(
            f"`hub_strategy` is `{config.hub_strategy.value}`, which would push optimizers at every save. Give "
            "`every_save` or `end`; `llava push model --include-training-state yes` pushes one at the end."
        )
    if config.hub_revision:
        raise ValueError("`hub_revision` is not used: pushes go to the main branch. Leave it out.")


def prepare_push(config: TrainConfig) -> None:
    """The repository is there, and we may write into it: better known before the training than after."""
    make_repository(HfApi(token=config.hub_token), config.hub_model_id, "model", bool(config.hub_private_repo))


def push_result(config: TrainConfig) -> None:
    folder = Path(config.output_dir)
    try:
        selection = model_files(folder, include_state=False)
        parameters = check_loads(folder, selection.uploads)
        print(f"pushed: {_push(config, folder, selection, parameters, None, None, 'end of training')}")
    except ValueError as error:
        raise ValueError(
            f"The training has ended well, and `{folder}` holds its result; but it was not pushed. {error} Then: "
            f"llava push model {folder} --repo-id {config.hub_model_id}"
        ) from error


def _push(
    config: TrainConfig,
    folder: Path,
    selection: Selection,
    parameters: int,
    facts: dict[str, Any] | None,
    step: int | None,
    message: str,
) -> str:
    api = HfApi(token=config.hub_token)
    old = read_old_card(api, config.hub_model_id, "model")
    example = from_page(Path(config.output_dir))
    made = describe_model(folder, config.hub_model_id, parameters, [], example, old, facts, step)
    uploads: list[Upload] = [*selection.uploads, *made]
    check_contents(uploads)
    return upload(api, config.hub_model_id, "model", uploads, f"llava train: {message}")[0]


class PushCheckpoints(TrainerCallback):
    """Of the main process. One push at a time: a checkpoint that is saved meanwhile is passed over, and told, unless
    `hub_always_push` has it wait.

    Args:
        facts: of the training, as `training.json` will have them.
    """

    def __init__(self, config: TrainConfig, facts: dict[str, Any]):
        self.config, self.facts = config, facts
        self.parameters: int | None = None
        self.thread: threading.Thread | None = None

    def on_save(self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if not state.is_world_process_zero or self.config.hub_strategy == "end":
            return
        if self.thread is not None and self.thread.is_alive() and not self.config.hub_always_push:
            print(f"step {state.global_step} is not pushed: the push before it has not ended")
            return
        self.wait()
        step = state.global_step
        place = Path(self.config.output_dir) / f".push-{step}"
        try:
            link_files(Path(self.config.output_dir) / f"checkpoint-{step}", place)
            selection = model_files(place, include_state=False)
            # Not in the thread: loading sets what all of torch goes by.
            self.parameters = self.parameters or check_loads(place, selection.uploads)
        except (ValueError, OSError) as error:
            shutil.rmtree(place, ignore_errors=True)
            print(f"step {step} is not pushed: {error}")
            return
        facts = self.facts | {"log": list(state.log_history)}
        self.thread = threading.Thread(target=self._push, args=(place, selection, facts, step), daemon=True)
        self.thread.start()

    def on_train_end(self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.wait()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()

    def _push(self, place: Path, selection: Selection, facts: dict[str, Any], step: int) -> None:
        try:
            address = _push(self.config, place, selection, self.parameters, facts, step, f"step {step}")
            print(f"step {step} is pushed: {address}")
        except Exception as error:
            # Whatever it is, the training has nothing to do with it.
            print(f"step {step} is not pushed: {error}")
        finally:
            shutil.rmtree(place, ignore_errors=True)


def link_files(folder: Path, place: Path) -> None:
    """The same files under another name, which stay when the checkpoint is deleted; copies where disks have no
    links."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != CARD:
            try:
                os.link(path, place / path.name)
            except OSError:
                shutil.copyfile(path, place / path.name)
