"""FSDP2 of two processes trains as one does, in a rehearsal on CPU, and leaves a checkpoint with stock names."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from modeling_llava import LlavaForConditionalGeneration as OurLlava
from tests import launching, training


pytestmark = pytest.mark.slow
# accelerate has FSDP on accelerators alone; here its state, made for CPU, is told what it would say on one. All else
# is what runs there: the launcher, recipes/accelerate/fsdp2.yaml, recipes/train.py.
REHEARSAL = """
import os, signal
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from recipes import train
from recipes.training import trainer

make = AcceleratorState.__init__
def make_as_on_gpu(self, *args, fsdp_plugin=None, **kwargs):
    make(self, *args, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
AcceleratorState.__init__ = make_as_on_gpu

step = trainer.LlavaTrainer.training_step
def watched(self, model, *args, **kwargs):
    if self.state.global_step == 0 and self.is_world_process_zero():
        print(sum(isinstance(module, FSDPModule) for module in model.modules()), "sharded modules")
    EXTRA
    return step(self, model, *args, **kwargs)
trainer.LlavaTrainer.training_step = watched
train.main()
"""
SIGNAL = "self.state.global_step == 1 and self.args.process_index == 1 and os.kill(os.getpid(), signal.SIGTERM)"
MODES = {
    "finetune": {},
    "finetune, checkpointing": {"activation_checkpointing": True},
    "pretrain": {"stage": "pretrain"},
    "pretrain, checkpointing": {"stage": "pretrain", "activation_checkpointing": True},
    "vision": {"tune_vision_tower": True},
    "lora": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0},
    "held out": {"eval_data": ["held-out.jsonl"], "eval_steps": 2, "sample_answers": 2},
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # In rows of one conversation each, an odd number of them of text alone: in a step, the other has a picture.
    training.write_data(tmp_path / "data.jsonl", trees=3, per_tree=1, text_only=3)
    training.write_data(tmp_path / "held-out.jsonl", trees=1, per_tree=1, text_only=4, seed=1)
    training.write_start(tmp_path / "start")
    return tmp_path


def rehearse(workplace: Path, out: str, extra: str = "pass", **changes) -> str:
    path = training.write_yaml(workplace / f"{out}.yaml", output_dir=out, max_length=130, **changes)
    script = workplace / "rehearsal.py"
    script.write_text(REHEARSAL.replace("EXTRA", extra))
    return launching.finish(launching.start(path, script, accelerate="fsdp2"))


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one(workplace, mode):
    training.run(workplace, output_dir="one", max_length=130, gradient_accumulation_steps=2, **MODES[mode])
    out = rehearse(workplace, "two", **MODES[mode])
    # Two layers, the embeddings, the head with the final norm, and the rest. Under peft accelerate does not find the
    # norm, and the head is alone; it is frozen.
    assert f"{5 if mode == 'lora' else 6} sharded modules" in out and "6 conversations in 6 trees" in out
    launching.check_same("one", "two", steps=3)
    if mode == "held out":
        logs = [launching.log_and_weights(folder)[0] for folder in ("one", "two")]
        losses = [[entry["eval_loss"] for entry in log if "eval_loss" in entry] for log in logs]
        assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-5)
    if mode != "lora":
        _, found = LlavaForConditionalGeneration.from_pretrained("two", output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]


def test_tied_embeddings(workplace):
    """The head is the input embeddings, which then share a group with the final norm."""
    model = OurLlava.from_pretrained("start")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained("start")
    assert "lm_head.weight" not in load_file("start/model.safetensors")
    training.run(workplace, output_dir="one", max_length=130, gradient_accumulation_steps=2)
    rehearse(workplace, "two")
    launching.check_same("one", "two", steps=3)


def test_a_run_that_was_stopped_goes_on(workplace):
    choices = {"optim": "adamw_torch", "learning_rate": 1e-3}
    rehearse(workplace, "whole", **choices)
    assert "saving step 2 of 3 and stopping" in rehearse(workplace, "stopped", SIGNAL, **choices)
    assert "going on from stopped/checkpoint-2" in rehearse(workplace, "stopped", **choices)
    launching.check_same("whole", "stopped", steps=3, atol=0)
