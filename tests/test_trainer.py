"""What training watches over: the log, losses that are no number, and which parameters learn how fast."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes import train as recipe
from recipes.training.trainable import PARTS
from recipes.training.trainer import LlavaTrainer
from tests import training


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data_and_start(tmp_path)
    return tmp_path


def test_a_loss_of_nan_stops_the_run_and_names_the_conversations(workplace):
    path = workplace / "start/model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight") and "language" in name)
    weights[name][:] = torch.finfo(torch.float32).max  # a number, as loading wants; what comes of it is none
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match="The loss is nan at step 1, in a batch of the conversations") as error:
        training.run(workplace)
    names = {json.loads(line)["id"] for line in Path("data.jsonl").read_text().splitlines()}
    named = str(error.value).split("[")[1].split("]")[0].replace("'", "").split(", ")
    assert len(named) == 4 and set(named) < names
    with pytest.raises(ValueError, match="The loss is nan at step 1, in a batch of the conversations"):
        training.run(workplace, packing=False)


def test_the_log_counts_epochs_of_the_data(workplace):
    """Both epochs are planned at once, and pass as one."""
    shown = []
    inner = LlavaTrainer.log

    def spy(self, logs, start_time=None):
        inner(self, logs, start_time)
        shown.append(logs.get("epoch"))

    LlavaTrainer.log = spy
    try:
        trainer = training.run(workplace, num_train_epochs=2)
    finally:
        LlavaTrainer.log = inner
    entries = training.steps_of(trainer.state.log_history)
    assert [entry["epoch"] for entry in entries] == pytest.approx([step / 3 for step in range(1, 7)])
    assert trainer.state.log_history[-1]["epoch"] == 2.0  # the summary at the end
    assert shown == pytest.approx([step / 3 for step in range(1, 7)] + [2.0])  # what wandb and the others are given
    for name in ("supervised_tokens_per_s", "tokens_per_s", "images_per_s", "padding", "data_wait", "grad_norm"):
        assert all(name in entry for entry in entries)
    assert all(0 <= entry["padding"] < 1 and 0 <= entry["data_wait"] <= 1 for entry in entries)
    assert torch.cuda.is_available() or not any("mfu" in entry for entry in entries)


@pytest.mark.parametrize(
    "attention, stage", [("segments", "finetune"), ("mask", "finetune"), ("segments", "pretrain")]
)
def test_rows_of_text_alone_and_rows_of_nothing(workplace, attention, stage):
    """Two trees in a step of three rows leave one row empty; in stage 1 nothing that learns took part."""
    training.write_data(workplace / "text.jsonl", trees=0, text_only=3)
    changes = {"attention": attention, "stage": stage}
    trainer = training.run(workplace, data=["text.jsonl"], gradient_accumulation_steps=4, **changes)
    plan = trainer.data_collator.rows.plan
    assert 0 in [len(plan.trees_of(row)) for row in range(len(plan))]
    (entry,) = training.steps_of(trainer.state.log_history)
    assert 3 < entry["loss"] < 10 and entry["images_per_s"] == 0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_an_empty_row_changes_no_loss(workplace):
    training.write_data(workplace / "text.jsonl", trees=0, text_only=3)
    losses = []
    for accumulate in (1, 4):
        changes = {
            "data": ["text.jsonl"],
            "gradient_accumulation_steps": accumulate,
            "output_dir": f"out{accumulate}",
            "max_length": 400,
        }
        trainer = training.run(workplace, **changes)
        losses.append(training.steps_of(trainer.state.log_history)[0])
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert losses[0]["grad_norm"] == pytest.approx(losses[1]["grad_norm"], rel=1e-5)


def groups(trainer) -> dict[str, float]:
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("use_peft", [False, True])
def test_each_part_has_its_rate(workplace, use_peft):
    changes = {"tune_vision_tower": not use_peft, "projector_lr": 0.003, "vision_lr": 0.0007, "weight_decay": 0.1}
    trainer = training.run(workplace, max_steps=1, use_peft=use_peft, **changes)
    rates = groups(trainer)
    assert rates.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        part = next((p for p in ("multi_modal_projector", "vision_tower") if p in name), None)
        assert rate == {"multi_modal_projector": 0.003, "vision_tower": 0.0007, None: 0.02}[part], name
    parts = {"multi_modal_projector", "language_model"} | (set() if use_peft else {"vision_tower"})
    assert {part for part in PARTS for name in rates if part in name} == parts
    table = {row["module"]: row for row in json.loads(Path("out/training.json").read_text())["trainable"]}
    assert table["multi_modal_projector"]["learning_rate"] == 0.003
    assert table["vision_tower"]["learning_rate"] == (None if use_peft else 0.0007)


def test_a_tower_that_peft_would_freeze_is_told(workplace):
    with pytest.raises(ValueError, match="`tune_vision_tower` goes without `use_peft`"):
        training.run(workplace, tune_vision_tower=True, use_peft=True)


def test_rates_move_parameters_in_proportion(workplace):
    """The first step of plain SGD: rate times gradient."""
    moved = {}
    start = recipe.LlavaForConditionalGeneration.from_pretrained("start").state_dict()
    for rate in (0.02, 0.002):
        trainer = training.run(workplace, max_steps=1, projector_lr=rate, output_dir=f"out{rate}")
        moved[rate] = {name: p - start[name] for name, p in trainer.model.state_dict().items()}
    for name in start:
        factor = 0.1 if "projector" in name else 1.0
        assert torch.allclose(moved[0.02][name] * factor, moved[0.002][name], atol=1e-6), name


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_train_vision_trains_all_that_is_used_and_nothing_else(workplace, tower):
    training.write_start(workplace / "start2", tower=tower)
    start = recipe.LlavaForConditionalGeneration.from_pretrained("start2").state_dict()
    trainer = training.run(workplace, max_steps=1, tune_vision_tower=True, model_name_or_path="start2", max_length=330)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    in_tower = {name for name in trainable if "vision_tower" in name}
    moved = {name for name, p in trainer.model.state_dict().items() if not torch.equal(p, start[name])}
    still = {name for name in trainable if "k_proj.bias" in name}  # softmax drops it
    assert moved <= trainable
    assert trainable - moved <= still
    layers = {re.search(r"encoder\.layers\.(\d)", name) for name in in_tower}
    layers = {int(layer[1]) for layer in layers if layer}
    assert layers == {0, 1}  # of three: features are those of the second
    assert not any("post_layernorm" in name or "head" in name for name in in_tower)
