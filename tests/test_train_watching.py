"""What a run shows of itself: loss and answers on held-out data, figures of what it gets through, its record."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from processing import LlavaProcessor
from recipes.training import samples
from recipes.training.throughput import Counts, Meter, count_padded, count_trees
from recipes.training.train_data import load_rows
from tests import tiny_text, training
from tests.test_collator import ALONE, SHARED, collate


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "MAX_NEW_TOKENS", 12)  # an untrained model ends none of its answers
    training.write_data(tmp_path / "data.jsonl", trees=6)
    training.write_data(tmp_path / "held-out.jsonl", trees=3, text_only=2, seed=5)
    training.write_start(tmp_path / "start")
    return tmp_path


def stock_loss_per_token(rows) -> float:
    """Over all supervised tokens, of stock transformers, one conversation at a time."""
    processor = LlavaProcessor.from_pretrained("out")
    model = AutoModelForImageTextToText.from_pretrained("out").eval()
    total = number = 0
    for row in rows:
        inputs = processor.encode(row["messages"], row["images"], for_training=True)
        count = int((inputs["labels"] != -100).sum())
        with torch.no_grad():
            total += float(model(**inputs).loss) * count
        number += count
    return total / number


@pytest.mark.parametrize("changes", [{}, {"packing": False}, {"per_device_train_batch_size": 2}])
def test_the_held_out_loss_is_that_of_all_its_tokens(workplace, changes):
    trainer = training.run(workplace, eval_data=["held-out.jsonl"], eval_steps=1.0, **changes)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] == pytest.approx(stock_loss_per_token(load_rows("held-out.jsonl")), rel=1e-5)


def test_the_page_shows_answers_with_their_pictures(workplace):
    training.run(workplace, eval_data=["held-out.jsonl"], eval_steps=1, num_train_epochs=1, sample_answers=4)
    page, record = Path("out/samples.html").read_text(), json.loads(Path("out/samples.json").read_text())
    steps = [entry["step"] for entry in record]
    assert steps == [1, 2, 3] and all(len(entry["answers"]) == 4 for entry in record)
    assert page.count("<article>") == 4 and page.count("data:image/jpeg;base64,") in (2, 3, 4)
    assert page.index("<td>3</td>") < page.index("<td>2</td>") < page.index("<td>1</td>")
    assert f"{record[-1]['loss']:.4f}" in page and "http" not in re.sub(r"base64,[^\"]*", "", page)
    points = re.findall(r'points="([^"]*)"', page)
    assert [len(line.split()) for line in points] == [3, 3]

    # The answers are those of stock transformers to the same prompt.
    processor = LlavaProcessor.from_pretrained("out")
    model = AutoModelForImageTextToText.from_pretrained("out").eval()
    rows = load_rows("held-out.jsonl")
    for place, number in enumerate([0, 2, 4, 6]):
        inputs = processor.encode(rows[number]["messages"][:1], rows[number]["images"])
        ids = model.generate(**inputs, max_new_tokens=samples.MAX_NEW_TOKENS, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert record[-1]["answers"][place] == answer


def test_the_page_is_continued_after_a_stop_and_text_cannot_become_markup(workplace):
    rows = [json.loads(line) for line in Path("held-out.jsonl").read_text().splitlines()]
    for row in rows:
        row["messages"][1]["content"][0]["text"] = "<script>alert('x')</script> & more"
    Path("held-out.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"eval_data": ["held-out.jsonl"], "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    training.run(workplace, **options)
    whole = Path("out/samples.html").read_text()
    assert "<script" not in whole and "&lt;script&gt;" in whole
    Path("out/training.json").unlink()  # as if killed at the end: step 3 is done again, from checkpoint 2
    training.run(workplace, **options)
    assert [entry["step"] for entry in json.loads(Path("out/samples.json").read_text())] == [1, 2, 3]
    assert Path("out/samples.html").read_text() == whole


def test_evaluation_changes_nothing_in_training(workplace):
    losses = []
    for changes in ({}, {"eval_data": ["held-out.jsonl"], "eval_steps": 1}):
        trainer = training.run(workplace, output_dir=f"out-{len(losses)}", **changes)
        losses.append([entry["loss"] for entry in training.steps_of(trainer.state.log_history)])
    assert losses[0] == losses[1]


def test_an_evaluation_without_data_is_refused(workplace):
    with pytest.raises(ValueError, match="`eval_strategy` needs `eval_data`"):
        training.run(workplace, eval_strategy="steps", eval_steps=1)


def test_the_best_checkpoint_is_loaded_at_the_end(workplace):
    """transformers would find none of the names of the weights, and keep the last ones."""
    options = {"eval_data": ["held-out.jsonl"], "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = training.run(workplace, learning_rate=30.0, load_best_model_at_end=True, **options)
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert best < 3 and trainer.state.best_model_checkpoint == f"out/checkpoint-{best}"
    assert stock_loss_per_token(load_rows("held-out.jsonl")) == pytest.approx(losses[best], rel=1e-5)


def test_what_a_batch_brings_is_counted_from_its_trees():
    rows = [{"trees": [SHARED, ALONE]}, {"trees": [ALONE]}, {"trees": []}]
    expected = Counts(supervised=8, tokens=11 + 4 + 4, alone=9 + 8 + 4 + 4, places=45, pairs=0, images=0)
    end = collate(rows, "end")["end"]
    real = [(0, 15), (1, 4)]  # the tokens of each row
    expected.pairs = sum(int((end[row, :length] - torch.arange(length)).sum()) for row, length in real)
    for layout in ("end", "segments", "varlen"):
        counted = count_trees(rows, collate(rows, layout), tiny_text.processor())
        assert counted == expected, layout


def test_what_a_padded_batch_brings():
    batch = {
        "input_ids": torch.zeros(2, 5),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[-100, 1, 2, -100, 3], [-100, 4, -100, -100, -100]]),
        "pixel_values": torch.zeros(2, 3, 4, 4),
    }
    assert count_padded(batch) == Counts(supervised=4, tokens=7, alone=7, places=10, pairs=15 + 3, images=2)


def test_figures_of_all_processes_are_added_up(workplace):
    class TwoProcesses:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, tensor):
            return tensor * 2

    config = AutoModelForImageTextToText.from_pretrained("start").config
    meters = [Meter(config, "finetune", torch.device("cpu")) for _ in range(2)]
    for meter in meters:
        meter.saw(Counts(supervised=100, tokens=300, alone=450, places=400, pairs=9, images=7))
        meter.started -= 1000
    one, two = meters[0].read(), meters[1].read(TwoProcesses())
    assert two["tokens_per_s"] == pytest.approx(2 * one["tokens_per_s"], rel=1e-3)
    assert one["padding"] == two["padding"] == 0.25 and one["sharing"] == two["sharing"] == 1.5
    assert "mfu" not in one


def test_the_record_has_what_a_card_needs(workplace):
    training.run(workplace, eval_data=["held-out.jsonl"], eval_steps=3)
    facts = json.loads(Path("out/training.json").read_text())
    assert facts["data"]["sources"][0]["rows"] == 12 and facts["data"]["sources"][0]["fingerprint"]
    assert facts["data"]["dropped"] == {} and facts["held_out"]["conversations"] == 8
    assert facts["plan"]["samples"] == 12 and facts["plan"]["sharing"] > 1.3
    assert facts["config"]["learning_rate"] == 0.02 and facts["config"]["model_name_or_path"] == "start"
    assert facts["config"]["packing"] is True  # as it was asked for
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", facts["commit"])
    assert facts["versions"].keys() >= {"torch", "transformers", "trl", "visual-instruction-tuning"}
    assert facts["hardware"] and facts["processes"] == 1 and facts["resumed_from"] is None
    assert not list(Path("out").rglob("training_args.bin"))


def test_dropped_conversations_are_in_the_record(workplace):
    rows = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    rows[3]["messages"][1]["content"][0]["text"] = " "
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    training.run(workplace, skip_invalid=True)
    dropped = json.loads(Path("out/training.json").read_text())["data"]["dropped"]
    reason = "Message N of a conversation is an empty answer"
    assert dropped == {reason: {"number": 1, "such_as": [rows[3]["id"]]}}
