"""Two processes train as one does: the same losses and weights, with text alone on one of them, and after a stop."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from recipes.training import checkpoints
from tests import launching, training


pytestmark = pytest.mark.slow
MODES = {
    "finetune": {},
    "pretrain": {"stage": "pretrain"},
    "lora": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0},
    "lora, linear projector": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "model_name_or_path": "linear"},
    "vision": {"tune_vision_tower": True},
}
STREAM = {"streaming": True, "stream_buffer": 2, "max_steps": 8, "dataloader_num_workers": 1}
# Writes down which conversations each process trains on; at leisure, so that a kill meets a step.
WATCHED = """
import os, signal, sys, time
from recipes import train
from recipes.training import trainer
step = trainer.LlavaTrainer.training_step
def watched(self, model, inputs, *args, **kwargs):
    with open(f"{self.args.output_dir}-{self.args.process_index}.txt", "a") as file:
        print(self.state.global_step, *inputs["ids"], file=file)
    EXTRA
    return step(self, model, inputs, *args, **kwargs)
trainer.LlavaTrainer.training_step = watched
train.main()
"""
SIGNAL = "self.state.global_step == 1 and self.args.process_index == 1 and os.kill(os.getpid(), signal.SIGTERM)"


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


def watched(workplace: Path, extra: str) -> Path:
    path = workplace / "watched.py"
    path.write_text(WATCHED.replace("EXTRA", extra))
    return path


def run_one(workplace: Path, **changes) -> None:
    training.run(workplace, output_dir="one", **{"max_length": 130, "gradient_accumulation_steps": 2} | changes)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one_that_accumulates(workplace, mode):
    if mode == "lora, linear projector":
        training.write_start(workplace / "linear", projector="linear")
    run_one(workplace, **MODES[mode])
    out = launching.finish(launching.start(config(workplace, "two", **MODES[mode])))
    assert "8 conversations in 8 trees" in out and "in 8 rows" in out
    assert json.loads(Path("two/training.json").read_text())["processes"] == 2
    launching.check_same("one", "two")


@pytest.mark.parametrize("changes", [{}, STREAM], ids=["planned", "streaming"])
def test_two_processes_killed_and_started_again(workplace, changes):
    choices = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"} | changes
    script = watched(workplace, "time.sleep(0.3)")
    launching.finish(launching.start(config(workplace, "whole", **choices), script))
    killed = launching.start(config(workplace, "killed", **choices), script)
    launching.wait_for(lambda: checkpoints.last_complete_checkpoint("killed"), killed)
    time.sleep(delay := random.random())
    launching.kill(killed)
    assert not Path("killed/training.json").exists(), f"{delay} s were too long"

    last = checkpoints.last_complete_checkpoint("killed")
    assert {f.name for f in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    again = launching.finish(launching.start(workplace / "killed.yaml", script))
    assert f"going on from {last}" in again, delay
    launching.check_same("whole", "killed", choices.get("max_steps", 4), atol=0)


def test_a_stream_is_dealt_out_among_processes(workplace):
    """Each conversation comes once an epoch, to one of them."""
    launching.finish(launching.start(config(workplace, "out", **STREAM), watched(workplace, "pass")))
    names = {json.loads(line)["id"] for line in Path("data.jsonl").read_text().splitlines()}
    seen = [[line.split() for line in Path(f"out-{rank}.txt").read_text().splitlines()] for rank in (0, 1)]
    for epoch in (range(4), range(4, 8)):
        counts = Counter(name for lines in seen for step, *ids in lines if int(step) in epoch for name in ids)
        assert counts == dict.fromkeys(names, 1)
    own = [{name for _, *ids in lines for name in ids} for lines in seen]
    assert not own[0] & own[1]


def test_held_out_loss_with_a_process_that_sees_no_picture(workplace):
    """Of five conversations one has a picture, so that a process has none of it; and one row is empty."""
    training.write_data(workplace / "held-out.jsonl", trees=1, per_tree=1, text_only=4, seed=1)
    choices = {"eval_data": ["held-out.jsonl"], "eval_steps": 2, "sample_answers": 2}
    run_one(workplace, **choices)
    launching.finish(launching.start(config(workplace, "two", **choices)))
    launching.check_same("one", "two")
    losses = [[e["eval_loss"] for e in launching.log_and_weights(f)[0] if "eval_loss" in e] for f in ("one", "two")]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][1]
    assert Path("two/samples.html").read_text().count("<img") == Path("one/samples.html").read_text().count("<img")


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
def test_cached_features(workplace, mode):
    run_one(workplace, **MODES[mode])
    launching.finish(launching.start(config(workplace, "two", cache_image_features="cache", **MODES[mode])))
    launching.check_same("one", "two")
    facts = json.loads(Path("two/training.json").read_text())["image_features"]
    assert facts["pictures"] == 3 > facts["computed_by_this_process"]


def test_one_of_two_processes_gets_a_signal(workplace):
    """Both stop at the same step."""
    path = config(workplace, "out")
    out = launching.finish(launching.start(path, watched(workplace, SIGNAL)))
    assert "signal to another process: saving step 2 of 4 and stopping" in out
    assert not Path("out/training.json").exists()
    assert [len(Path(f"out-{rank}.txt").read_text().splitlines()) for rank in (0, 1)] == [2, 2]
    assert "going on from out/checkpoint-2" in launching.finish(launching.start(path))
    launching.finish(launching.start(config(workplace, "whole")))
    launching.check_same("whole", "out", atol=0)
