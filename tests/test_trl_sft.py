"""`trl sft` itself trains our checkpoints on our data: the stock model, TRL's collator, the answers' tokens alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Image, List, load_dataset
from safetensors.torch import load_file

from recipes.training.train_data import load_rows
from tests import training


pytestmark = pytest.mark.slow


def test_trl_trains_what_we_make(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data(tmp_path / "data.jsonl", trees=4, per_tree=2)
    training.write_start(tmp_path / "start", language="llama")
    Path("instruct").mkdir()
    load_rows("data.jsonl").cast_column("images", List(Image())).to_parquet("instruct/train.parquet")
    assert load_dataset("./instruct", split="train")[0]["images"][0].size == (40, 30)

    same = {
        "max_steps": 2,
        "learning_rate": 0.02,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1e9,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    flags = [str(word) for name, value in same.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("trl")), "sft", "--model_name_or_path", "start"),
            *("--dataset_name", "./instruct", "--assistant_only_loss", "--max_length", "None"),
            *("--output_dir", "theirs", "--dtype", "float32", *flags),
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = [json.loads(line.replace("'", '"')) for line in done.stdout.splitlines() if line.startswith("{'loss'")]

    frozen = load_file("start/model.safetensors")
    trained = load_file("theirs/model.safetensors")
    assert trained.keys() == frozen.keys()  # the stock names, so it loads in ours and everywhere else
    assert any(not torch.equal(trained[name], frozen[name]) for name in frozen if "language_model" in name)

    ours = training.run(tmp_path, data=["instruct"], packing=False, tune_vision_tower=True, max_length=None, **same)
    losses = [entry["loss"] for entry in training.steps_of(ours.state.log_history)]
    assert [float(entry["loss"]) for entry in theirs] == pytest.approx(losses, rel=2e-4)  # printed to four digits
