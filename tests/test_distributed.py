"""Two processes train as one does: the same losses and weights, with text alone on one of them, and after a stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes import checkpoints
from tests import training


pytestmark = pytest.mark.slow
MODES = {
    "finetune": {},
    "pretrain": {"stage": "pretrain"},
    "lora": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0},
    "vision": {"tune_vision_tower": True},
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # In rows of one conversation each, an odd number of them of text alone: in a step, the other has a picture.
    training.write_data(tmp_path / "data.jsonl", trees=3, per_tree=1, text_only=5)
    training.write_start(tmp_path / "start")
    return tmp_path


def config(workplace: Path, out: str, **changes) -> Path:
    changes = {"max_length": 130, "max_steps": 4} | changes
    return training.write_yaml(workplace / f"{out}.yaml", output_dir=out, **changes)


def start(path: Path, processes: int) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "recipes.train", "--config", str(path)]
    if processes > 1:  # `accelerate launch --cpu` starts one process, whatever it is told
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
        command = [sys.executable, *launch, "-m", "recipes.train", "--config", str(path)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    try:
        out, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, out[-4000:]
    return out


def check_same(one: str, other: str, atol: float) -> None:
    logs = [training.steps_of(json.loads(Path(f, "training.json").read_text())["log"]) for f in (one, other)]
    assert len(logs[0]) == len(logs[1]) == 4
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "epoch"):
            assert a[name] == (b[name] if atol == 0 else pytest.approx(b[name], rel=2e-6)), (name, a["step"])
    first, second = (load_file(next(Path(f).glob("*model.safetensors"))) for f in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] - second[name]).abs().max() <= atol, name


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one_that_accumulates(workplace, mode):
    finish(start(config(workplace, "one", gradient_accumulation_steps=2, **MODES[mode]), 1))
    out = finish(start(config(workplace, "two", **MODES[mode]), 2))
    assert "8 conversations in 8 trees" in out and "in 8 rows" in out
    check_same("one", "two", 1e-6)


def test_two_processes_killed_and_started_again(workplace):
    choices = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
    whole = config(workplace, "whole", **choices)
    finish(start(whole, 2))
    killed = start(config(workplace, "killed", **choices), 2)
    for _ in range(2000):
        if checkpoints.last_complete_checkpoint("killed") or killed.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    last = checkpoints.last_complete_checkpoint("killed")
    assert {f.name for f in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    Path("killed/training.json").unlink(missing_ok=True)
    assert "going on from killed/checkpoint-" in finish(start(workplace / "killed.yaml", 2))
    check_same("whole", "killed", 0)


def test_one_of_two_processes_gets_a_signal(workplace, tmp_path):
    """Both stop at the same step."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys, torch\n"
        "from recipes import train, trainer\n"
        "step = trainer.LlavaTrainer.training_step\n"
        "def signalled(self, *args, **kwargs):\n"
        "    if self.state.global_step == 1 and os.environ['RANK'] == '1' and sys.argv[2:]:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(self, *args, **kwargs)\n"
        "trainer.LlavaTrainer.training_step = signalled\n"
        "train.main(['--config', sys.argv[1]])\n"
    )
    path = config(workplace, "out")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    for last in (["signal"], []):
        done = subprocess.run(
            [*launch, str(path), *last], env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        if last:
            assert "signal to another process: saving step 2 of 4 and stopping" in done.stdout
    assert "going on from out/checkpoint-2" in done.stdout
    finish(start(config(workplace, "whole"), 2))
    check_same("whole", "out", 0)
