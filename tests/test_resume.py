"""A run that was stopped, killed or cut off goes on as if it had not been; another gets none of its checkpoints."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.training import checkpoints
from recipes.training.train_data import load_rows
from recipes.training.trainer import LlavaTrainer, StopOnSignal
from tests import training


STEPS = 6
MODES = {
    "finetune": {"num_train_epochs": 2},
    "pretrain": {"stage": "pretrain"},
    "lora": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2, "num_train_epochs": 2},
    "padded": {"packing": False, "per_device_train_batch_size": 2},
    "streaming": {"streaming": True, "stream_buffer": 6, "dataloader_num_workers": 2, "data": ["saved"]},
}
# Of one thread, so that sums are the same whatever else the machine does; at leisure, so that a signal meets a step.
SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
from recipes import train
from recipes.training import trainer
step = trainer.LlavaTrainer.training_step
def slow(*args, **kwargs):
    time.sleep({pause})
    return step(*args, **kwargs)
trainer.LlavaTrainer.training_step = slow
train.main(["--config", sys.argv[1]])
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data(tmp_path / "data.jsonl", trees=12, text_only=2)
    training.write_start(tmp_path / "start")
    return tmp_path


def start(config: Path, pause: float = 0.0) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT.format(pause=pause), str(config)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen, timeout: int = 400) -> str:
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out[-3000:]
    return out


def wait_for(condition, process: subprocess.Popen) -> None:
    until = time.monotonic() + 400
    while time.monotonic() < until:
        if condition() or process.poll() is not None:
            return
        time.sleep(0.02)
    raise AssertionError("waited too long")


def result(folder: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    log = json.loads(Path(folder, "training.json").read_text())["log"]
    weights = next(Path(folder).glob("*model.safetensors"))
    names = ("step", "loss", "grad_norm", "learning_rate", "epoch", "entropy")
    return [{name: entry[name] for name in names} for entry in training.steps_of(log)], load_file(weights)


def check_same(one: str, other: str) -> None:
    (log, weights), (other_log, other_weights) = result(one), result(other)
    assert log == other_log and len(log) == STEPS
    assert weights.keys() == other_weights.keys()
    for name in weights:
        assert torch.equal(weights[name], other_weights[name]), name


def config(workplace: Path, out: str, **changes) -> Path:
    changes = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": STEPS, "save_steps": 1} | changes
    return training.write_yaml(workplace / f"{out}.yaml", output_dir=out, save_strategy="steps", **changes)


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[] if mode == "finetune" else [pytest.mark.slow]) for mode in MODES]
)
def test_killed_and_started_again(workplace, mode):
    """At a random moment, which may be in the middle of a checkpoint."""
    load_rows("data.jsonl").save_to_disk("saved")  # of several shards, so that a stream's workers get some each
    whole = start(config(workplace, "whole", **MODES[mode], save_total_limit=2))
    killed = start(config(workplace, "killed", **MODES[mode], save_total_limit=2), pause=0.3)
    wait_for(lambda: checkpoints.last_complete_checkpoint("killed"), killed)
    time.sleep(delay := random.random())
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not Path("killed/training.json").exists(), f"after {delay} s it was too late to kill it"

    out = finish(start(workplace / "killed.yaml"))
    assert "going on from killed/checkpoint-" in out, delay
    finish(whole)
    check_same("whole", "killed")
    assert len(list(Path("killed").glob("checkpoint-*"))) == 2
    if mode == "accumulation":  # both epochs are 14 rows, 7 steps; 6 were asked for
        assert result("killed")[0][-1]["epoch"] == pytest.approx(2 * 6 / 7)


def test_a_signal_stops_with_a_checkpoint_and_parts_of_one_are_passed_over(workplace, monkeypatch, capsys):
    changes = {"optim": "adamw_torch", "max_steps": STEPS, "save_strategy": "steps"}
    training.run(workplace, output_dir="whole", save_steps=9, **changes)
    step = LlavaTrainer.training_step

    def signalled(trainer, *args):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *args)

    changes |= {"output_dir": "stopped", "save_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(LlavaTrainer, "training_step", signalled)
        training.run(workplace, **changes)
    assert "SIGTERM: saving step 3 of 6 and stopping" in capsys.readouterr().out
    assert not Path("stopped/training.json").exists()
    last = checkpoints.last_complete_checkpoint("stopped")
    assert last.name == "checkpoint-3"

    shutil.copytree(last, "stopped/checkpoint-4")
    Path("stopped/checkpoint-4/complete.json").unlink()
    shutil.copytree(last, "stopped/checkpoint-5")
    Path("stopped/checkpoint-5/scheduler.pt").unlink()
    assert checkpoints.last_complete_checkpoint("stopped") == last
    with open(last / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    training.run(workplace, **changes)
    assert "going on from stopped/checkpoint-2" in capsys.readouterr().out
    check_same("whole", "stopped")

    before = {f: f.stat().st_mtime_ns for f in Path("stopped").rglob("*")}
    assert training.run(workplace, **changes) is None
    assert "holds the result of this run already" in capsys.readouterr().out
    assert before == {f: f.stat().st_mtime_ns for f in Path("stopped").rglob("*")}


def test_another_run_is_refused(workplace):
    changes = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    training.run(workplace, **changes)
    Path("out/training.json").unlink()  # as if killed after its last checkpoint
    training.write_data(workplace / "other.jsonl", trees=4, seed=1)
    others = {
        "learning_rate": 0.5,
        "seed": 1,
        "stage": "pretrain",
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "data": ["other.jsonl"],
        "use_peft": True,
    }
    for name, value in others.items():
        shown = "rows_per_step" if name == "gradient_accumulation_steps" else name
        with pytest.raises(ValueError, match=f"holds another run than the one asked for:\n(.*\n)*- {shown}: it has"):
            training.run(workplace, **changes | {name: value})
    rows = Path("data.jsonl").read_text().splitlines()
    Path("data.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(ValueError, match="- conversations: it has {'number': 26"):
        training.run(workplace, **changes)
    Path("data.jsonl").write_text("\n".join(rows) + "\n")

    (record := Path("out/run.json")).rename("elsewhere.json")
    with pytest.raises(ValueError, match="holds a training, but no `run.json`"):
        training.run(workplace, **changes)
    Path("elsewhere.json").rename(record)
    trainer = training.run(workplace, **changes, save_total_limit=3, logging_first_step=True)  # matters not
    assert trainer.state.global_step == 1 and Path("out/training.json").is_file()
    with pytest.raises(ValueError, match="holds another run"):
        training.run(workplace, **changes | {"seed": 1})


def test_a_run_that_left_nothing_does_not_stand_in_the_way(workplace):
    with pytest.raises(ValueError, match="holds another run"):
        for rate in (0.1, 0.2):
            training.run(workplace, max_steps=1, learning_rate=rate)
    Path("out/training.json").unlink()
    training.run(workplace, max_steps=1, learning_rate=0.3)


def test_old_checkpoints_go_once_the_new_one_is_whole(workplace, monkeypatch):
    """After every file operation that matters, at least one checkpoint is complete."""
    seen = []
    mark, delete = checkpoints.mark_complete, checkpoints.delete_old_checkpoints

    def complete():
        return [folder.name for folder in checkpoints.complete_checkpoints("out")]

    def spy_mark(folder, step):
        seen.append(("before", complete()))
        mark(folder, step)

    def spy_delete(*args):
        seen.append(("marked", complete()))
        delete(*args)
        seen.append(("deleted", complete()))

    monkeypatch.setattr("recipes.training.trainer.mark_complete", spy_mark)
    monkeypatch.setattr("recipes.training.trainer.delete_old_checkpoints", spy_delete)
    Path("out/checkpoint-7").mkdir(parents=True)  # half of one
    training.run(workplace, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    one, two, three = ("checkpoint-1", "checkpoint-2", "checkpoint-3")
    assert seen == [
        ("before", []),
        ("marked", [one]),
        ("deleted", [one]),
        ("before", [one]),
        ("marked", [one, two]),
        ("deleted", [two]),
        ("before", [two]),
        ("marked", [two, three]),
        ("deleted", [three]),
    ]
    assert [folder.name for folder in Path("out").glob("checkpoint-*")] == [three]


def test_signals_do_after_training_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), StopOnSignal() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._receive
        raise RuntimeError
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
