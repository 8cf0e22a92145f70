"""TRL's `SFTTrainer` for planned rows: in their order, a learning rate per part, checkpoints whole or not at all."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from processing.streaming import StreamingRows
from recipes.run_folder import told_when_full
from recipes.training.checkpoints import delete_old_checkpoints, load_weights, mark_complete
from recipes.training.throughput import Meter
from recipes.training.train_config import TrainConfig
from recipes.training.train_rows import CollateStreamed, StreamPosition
from recipes.training.trainer_callbacks import StopOnSignal


class LlavaTrainer(SFTTrainer):
    """
    Args:
        epochs_in_plan: The rows of all epochs are planned at once and pass as one; puts the epoch right in the log.
        meter: Counts what the run gets through.
        stream: Rows that are read while training runs, instead of `train_dataset`; each process reads its own.
    """

    def __init__(
        self,
        *args,
        epochs_in_plan: int,
        meter: Meter,
        stream: StreamingRows | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.epochs_in_plan = epochs_in_plan
        self.meter = meter
        self.stream = stream
        self.position = None if stream is None else StreamPosition(stream, self.args.dataloader_num_workers)
        self.batch_ids: list[str] = []
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)

    def get_train_dataloader(self) -> DataLoader:
        if self.stream is None:
            return super().get_train_dataloader()
        # Not prepared by accelerate, which would have one process read for all and look a batch ahead.
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.stream,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=CollateStreamed(self.stream, self.data_collator.collator),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        config: TrainConfig = self.args
        rates = {"multi_modal_projector": config.projector_lr, "vision_tower": config.vision_lr}
        rates = {part: rate for part, rate in rates.items() if rate is not None}
        names = {id(p): name for name, p in (self.model if model is None else model).named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                rate = next((r for part, r in rates.items() if part in names[id(parameter)]), group["lr"])
                by_rate.setdefault(rate, []).append(parameter)
            groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
        optimizer.param_groups = groups
        return optimizer

    def get_batch_samples(self, *args, **kwargs):
        started = time.perf_counter()
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self.meter.waited(time.perf_counter() - started)
        return batches, num_items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.batch_ids = inputs.pop("ids", [])
        inputs.pop("counts", None)
        if "position" in inputs:
            self.position.passed(inputs.pop("position"))
        return super()._prepare_inputs(inputs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        self.meter.saw(inputs["counts"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, in a batch of the conversations "
                f"{self.batch_ids}. Look at them, or lower the learning rate."
            )
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if torch.is_grad_enabled() and not loss.requires_grad:
            # The projector learns alone, and no picture went through it: gradients are zero, as among processes.
            loss = loss + sum(p.sum() * 0 for p in self.model.parameters() if p.requires_grad)
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> tuple:
        supervised = inputs["counts"].supervised
        loss, *rest = super().prediction_step(model, inputs, *args, **kwargs)
        if supervised:  # a row of nothing has a loss of 0 / 0
            self.held_out_loss += torch.stack([loss.float() * supervised, loss.new_tensor(supervised).float()])
        return loss, *rest

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """The loss is the mean over all supervised tokens, as in training, not over batches of more and less."""
        self.held_out_loss = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, supervised = self.accelerator.reduce(self.held_out_loss).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / supervised
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.read(self.accelerator)
        passes = self.state.epoch
        if self.stream is not None:  # has no epochs: the share of the run
            self.state.epoch = self.state.global_step / self.state.max_steps
        else:
            self.state.epoch = (passes or 0) * self.epochs_in_plan
        super().log(logs, start_time)
        self.state.epoch = passes

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            # The loop looks at `max_steps` after a step: from a checkpoint of the last one it would go one too far,
            # and of a stream, whose epochs have no end, it would begin the next epoch for ever.
            self.control.should_training_stop = True
            return
        if kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._take_up_unlogged_loss(Path(kwargs["resume_from_checkpoint"]))
        super()._run_epoch(*args, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """None: TRL's would say what is not so, such as which data this was trained on. Ours is made by a push."""

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Nothing: `recipes.publishing.push_while_training` makes the repository, before the data is read."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: transformers' would send the whole folder, with a pickle and local paths. A callback pushes."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers', which would push here, when `training.json` is not written yet."""
        super().save_model(output_dir, _internal_call=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._saves_whole:
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._saves_whole:
            load_weights(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    @property
    def _saves_whole(self) -> bool:
        """With names that transformers does not find again; PEFT, FSDP and DeepSpeed have their own ways."""
        return isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if state_dict and isinstance(self.model, PreTrainedModel):
            # FSDP2 gathers tied weights one by one: equal, but not the same, so that they would be saved twice.
            state_dict = {name: t for name, t in state_dict.items() if name not in self.model.all_tied_weights_keys}
        folder = Path(output_dir or self.args.output_dir)
        had_card = (folder / "README.md").exists()
        super()._save(output_dir, state_dict)
        if not had_card:
            (folder / "README.md").unlink(missing_ok=True)  # peft's, a form that nobody has filled in
        # A pickle of the configuration, which `training.json` has as text.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # half of one, from a run that was killed
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with told_when_full(folder):
                super()._save_checkpoint(model, trial)  # deletes no old one before the new one is whole
                self._save_unlogged_loss(folder)
                if self.position is not None:
                    self.position.save(folder, self.args.process_index)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark_complete(folder, self.state.global_step)
        except Exception:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)  # what there is of it takes space and is of no use
            raise
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            delete_old_checkpoints(self.args.output_dir, limit, {folder} | ({Path(best)} if best else set()))

    def _save_unlogged_loss(self, folder: Path) -> None:
        """The sum of this process since the last line of the log, which a next line is the mean of."""
        since = {"loss": self._tr_loss.item(), "last_logged": self._globalstep_last_logged}
        (folder / f"loss-{self.args.process_index}.json").write_text(json.dumps(since))

    def _take_up_unlogged_loss(self, folder: Path) -> None:
        saved = [json.loads(file.read_text()) for file in sorted(folder.glob("loss-*.json"))]
        mean = sum(since["loss"] for since in saved) / len(saved)
        own = folder / f"loss-{self.args.process_index}.json"
        # Of as many processes as before each takes up its own, and the log is the same to the last bit.
        self._tr_loss += json.loads(own.read_text())["loss"] if len(saved) == self.args.world_size else mean
        self._total_loss_scalar -= mean  # the summary at the end is of the steps since then
        self._globalstep_last_logged = saved[0]["last_logged"]
