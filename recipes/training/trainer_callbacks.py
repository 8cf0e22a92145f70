"""What a training does between steps: it stops on a signal, and knows where epochs end."""

import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from processing.packing import Plan
from recipes.training.train_config import TrainConfig


class StopOnSignal(TrainerCallback):
    """SIGTERM (a preempted job) and SIGINT: the step ends, a checkpoint is saved, the run stops.

    Signals are received within `with`; before and after they do what they did.
    """

    def __init__(self):
        self.received: int | None = None
        self.stopped_by = 0  # by all processes: the signal that one of them received
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # others may not receive signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.before = {}

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt  # a second one does not wait
        self.received = number

    def on_step_end(self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs) -> TrainerControl:
        self.stopped_by = self._received_by_any(args.device)
        if self.stopped_by:
            if state.is_world_process_zero:
                name = signal.Signals(self.received).name if self.received else "signal to another process"
                print(f"{name}: saving step {state.global_step} of {state.max_steps} and stopping")
            control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs
    ) -> TrainerControl:
        if self.stopped_by:  # the end of the step has saved it, and whoever stops us does not wait for held-out data
            control.should_save = control.should_evaluate = False
        return control

    def _received_by_any(self, device: torch.device) -> int:
        """A signal reaches the processes of a run at different steps, if all of them: they stop at the same one."""
        if not torch.distributed.is_initialized():
            return self.received or 0
        number = torch.tensor(float(self.received or 0), device=device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number.item())


class EpochEnds(TrainerCallback):
    """`epoch` as a strategy: the rows of all epochs are planned at once, and the loop takes them for one.

    An epoch has ended with the step that holds its last row. The end of the plan is left to the loop.
    """

    def __init__(self, plan: Plan):
        self.steps = plan.summary.steps
        self.ends = {-(-row // plan.rows_per_step) for row in plan.epoch_starts[1:]}

    def on_step_end(self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs) -> TrainerControl:
        if state.global_step % self.steps in self.ends and state.global_step < state.max_steps:
            control.should_log |= args.logging_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= self._epochs(state)
            control.should_save |= args.save_strategy == "epoch"
        return control

    def _epochs(self, state: TrainerState) -> float:
        return state.global_step / self.steps * (len(self.ends) + 1)
