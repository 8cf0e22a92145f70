"""What a run leaves in its `output_dir`: checkpoints that are whole or not there, and which run they belong to."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from trl import ModelConfig

from data_generation.replacing import write_atomically
from recipes.training.train_config import TrainConfig


COMPLETE, RUN, FINISHED = "complete.json", "run.json", "training.json"
# Fields of `TrainConfig` that say where and how to run, not what to compute: a run goes on with others too. The three
# that make up `rows_per_step` are compared as that one number.
FREE = re.compile(
    r"output_dir|save_.*|resume_from_checkpoint|logging_.*|log_.*|report_to|run_name|project|trackio_.*|disable_tqdm|"
    r"push_to_hub|hub_.*|do_.*|eval_.*|per_device_.*|gradient_accumulation_steps|auto_find_batch_size|use_cpu|"
    r"attention|activation_.*|gradient_checkpointing.*|torch_compile.*|torch_empty_cache_steps|ddp_.*|fsdp.*|deepspeed|"
    r"accelerator_config|parallelism_config|local_rank|debug|skip_memory_metrics|include_.*|batch_eval_metrics|"
    r"prediction_loss_only|restore_callback_states_from_checkpoint|enable_jit_checkpoint|dataset_num_proc|"
    r"dataloader_(?!drop_last).*|skip_invalid|sample_answers|cache_image_features|ignore_data_skip"
)


def mark_complete(folder: Path, step: int) -> None:
    """The last thing written into a checkpoint: the names and sizes of its files."""
    files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    write_atomically(folder / COMPLETE, json.dumps({"step": step, "files": files}))


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints whose every file is there in its full size, the oldest first; what was cut off is passed over."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if number and is_complete(folder):
            found.append((int(number[1]), folder))
    return [folder for _, folder in sorted(found)]


def is_complete(folder: Path) -> bool:
    if not (folder / COMPLETE).is_file():
        return False
    files = json.loads((folder / COMPLETE).read_text())["files"]
    return all((folder / f).is_file() and (folder / f).stat().st_size == size for f, size in files.items())


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    return next(reversed(complete_checkpoints(output_dir)), None)


def delete_old_checkpoints(output_dir: str | Path, limit: int | None, keep: set[Path]) -> None:
    """Leaves the newest `limit` complete ones and those to keep; halves of checkpoints count for nothing and go."""
    if not limit or limit < 1:
        return
    keep = keep | set(complete_checkpoints(output_dir)[-limit:])
    for folder in Path(output_dir).glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", folder.name) and folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """The weights of a checkpoint, of one file or several, into a model that is there already.

    Checkpoints have the names of the Hub, which are not those of the modules. transformers' `Trainer` takes them for
    the same, finds none of them, and goes on from what the run had started with.
    """
    own = model.state_dict()
    renamings = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    left = set(own)
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for saved in file.keys():  # noqa: SIM118
                name, _ = rename_source_key(saved, renamings, [], model.base_model_prefix, own)
                if name not in own:
                    raise ValueError(f"`{path}` has the weight `{saved}`, which the model has not. Start anew.")
                own[name].copy_(file.get_tensor(saved))
                left.discard(name)
    filled = {own[name].data_ptr() for name in own if name not in left}
    left = {name for name in left if own[name].data_ptr() not in filled}  # tied ones are saved once
    if left:
        raise ValueError(f"`{folder}` lacks {len(left)} weights of the model, such as `{min(left)}`. Start anew.")


def describe_run(config: TrainConfig, model_config: ModelConfig, data: dict[str, Any], rows_per_step: int) -> dict:
    """Everything that decides what a run computes; to be called before anything changes `config`."""
    fields = {
        name: value for name, value in (config.to_dict() | asdict(model_config)).items() if not FREE.fullmatch(name)
    }
    fields["rows_per_step"] = rows_per_step
    fields["conversations"] = data
    return json.loads(json.dumps(fields, default=str))


def hash_of(encoded: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for table in encoded.select_columns(["id", "input_ids", "answers"]).with_format("arrow").iter(batch_size=10_000):
        digest.update("\n".join(table["id"].to_pylist()).encode())
        for column in ("input_ids", "answers"):
            values = table[column].combine_chunks()
            digest.update(values.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            flat = values.flatten() if column == "input_ids" else values.flatten().flatten()
            digest.update(flat.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def check_same_run(output_dir: str | Path, run: dict[str, Any]) -> None:
    """Refuses a folder with the checkpoints or the result of a run that computes something else."""
    folder = Path(output_dir)
    if last_complete_checkpoint(folder) is not None or (folder / FINISHED).is_file():
        compare_runs(folder, run)


def compare_runs(folder: Path, run: dict[str, Any]) -> None:
    if not (folder / RUN).is_file():
        raise ValueError(
            f"`{folder}` holds a training, but no `{RUN}` that says of what. Give another `output_dir`, or delete it."
        )
    before = json.loads((folder / RUN).read_text())
    differ = [name for name in sorted(before.keys() | run.keys()) if before.get(name) != run.get(name)]
    if differ:
        lines = [f"- {name}: it has {before.get(name)!r}, wanted {run.get(name)!r}" for name in differ]
        raise ValueError(
            f"`{folder}` holds another run than the one asked for:\n" + "\n".join(lines) + "\nGive another "
            "`output_dir`, delete this one to start anew, or take back the changes to go on with it."
        )


def given_checkpoint(path: Path, run: dict[str, Any]) -> Path:
    """The checkpoint that `resume_from_checkpoint` names, which is held to the same as one that was found."""
    if not is_complete(path):
        found = "is not complete" if path.is_dir() else "is no folder"
        raise ValueError(
            f"`resume_from_checkpoint` names `{path}`, which {found}: wanted a folder whose every file is there as "
            f"its `{COMPLETE}` says. Give another, or leave it out to go on from the last complete one."
        )
    compare_runs(path.parent, run)
    return path


def is_finished(output_dir: str | Path) -> bool:
    return (Path(output_dir) / RUN).is_file() and (Path(output_dir) / FINISHED).is_file()


def wait_for_all() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
