"""Training in several processes, started as its users start it: by `accelerate launch`, here on CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests import training


ROOT = Path(__file__).parent.parent
TIMEOUT = 400  # two processes on a machine that has other work


def start(config: Path, script: Path | None = None, accelerate: str = "ddp") -> subprocess.Popen:
    """Two processes. `accelerate launch --cpu` would start one, whatever number it is given; `use_cpu` is in the
    configuration of the run.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / f"recipes/accelerate/{accelerate}.yaml")]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    command += ["-m", "recipes.train"] if script is None else [str(script)]
    return subprocess.Popen(
        [*command, "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    try:
        out, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, out[-6000:]
    return out


def kill(process: subprocess.Popen) -> None:
    """All of them at once with SIGKILL: a launcher's processes have sessions of their own, and would live on."""
    launcher = psutil.Process(process.pid)
    for member in [launcher, *launcher.children(recursive=True)]:
        member.kill()
    process.communicate()


def wait_for(condition, process: subprocess.Popen) -> None:
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        if condition() or process.poll() is not None:
            return
        time.sleep(0.02)
    kill(process)
    raise AssertionError("waited too long")


def log_and_weights(folder: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    log = json.loads(Path(folder, "training.json").read_text())["log"]
    return log, load_file(next(Path(folder).glob("*model.safetensors")))


def check_same(one: str, other: str, steps: int = 4, atol: float = 1e-6) -> None:
    """The same losses, norms and final weights; bit for bit with `atol=0`."""
    (log, weights), (other_log, other_weights) = log_and_weights(one), log_and_weights(other)
    log, other_log = training.steps_of(log), training.steps_of(other_log)
    assert len(log) == len(other_log) == steps
    for a, b in zip(log, other_log, strict=True):
        for name in ("loss", "grad_norm", "epoch"):
            assert a[name] == (b[name] if atol == 0 else pytest.approx(b[name], rel=2e-6)), (name, a["step"])
    assert weights.keys() == other_weights.keys()
    for name in weights:
        assert (weights[name] - other_weights[name]).abs().max() <= atol, name
