"""TRL's `SFTTrainer` for planned rows: in their order, a learning rate per part, checkpoints whole or not at all."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from processing.collator import PaddedCollator, TreeCollator
from processing.rows import PackedRows
from recipes.throughput import Meter
from recipes.train_config import TrainConfig


COMPLETE = "complete.json"


@dataclass
class CollateNumbered:
    """TRL takes data sets of `datasets` alone: it gets the numbers of rows, and the rows are read in the workers."""

    rows: Dataset | PackedRows
    collator: PaddedCollator | TreeCollator

    def __call__(self, numbered: list[dict[str, int]]) -> dict[str, Any]:
        numbers = [item["row"] for item in numbered]
        return {**self.collator([self.rows[n] for n in numbers]), "row_numbers": numbers}


class LlavaTrainer(SFTTrainer):
    """
    Args:
        epochs_in_plan: The rows of all epochs are planned at once and pass as one; puts the epoch right in the log.
        meter: Counts what the run gets through.
        name_rows: The ids of the conversations in rows of these numbers, for the error about a loss of NaN.
    """

    def __init__(
        self, *args, epochs_in_plan: int, meter: Meter, name_rows: Callable[[list[int]], list[str]], **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.epochs_in_plan = epochs_in_plan
        self.meter = meter
        self.name_rows = name_rows
        self.row_numbers: list[int] = []

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
        self.row_numbers = inputs.pop("row_numbers", [])
        return super()._prepare_inputs(inputs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        self.meter.saw(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, in a batch of the conversations "
                f"{self.name_rows(self.row_numbers)}. Look at them, or lower the learning rate."
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.read()
        if "epoch" in logs:
            logs["epoch"] *= self.epochs_in_plan
        super().log(logs, start_time)
        if "epoch" in self.state.log_history[-1]:
            self.state.log_history[-1]["epoch"] *= self.epochs_in_plan

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # deletes no old one before the new one is whole
        finally:
            self.args.save_total_limit = limit
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
            write_atomically(folder / COMPLETE, json.dumps({"step": self.state.global_step, "files": files}))
            rotate_checkpoints(output_dir=self.args.output_dir, save_total_limit=limit, use_mtime=True)


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint whose every file is there in its full size; one that was cut off is passed over."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number, marker = re.fullmatch(r"checkpoint-(\d+)", folder.name), folder / COMPLETE
        if number and marker.is_file():
            files = json.loads(marker.read_text())["files"]
            if all((folder / f).is_file() and (folder / f).stat().st_size == size for f, size in files.items()):
                found.append((int(number[1]), folder))
    return max(found)[1] if found else None


class StopOnSignal(TrainerCallback):
    """SIGTERM (a preempted job) and SIGINT: the step ends, a checkpoint is saved, the run stops."""

    def __init__(self):
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt  # a second one does not wait
        self.received = signal.Signals(number).name

    def on_step_end(self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs) -> TrainerControl:
        if self.received:
            print(f"{self.received}: saving step {state.global_step} of {state.max_steps} and stopping")
            control.should_save = control.should_training_stop = True
        return control
