"""Training on data that is read while it runs: the position is part of a checkpoint, and continues exactly."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file

from processing.streaming import StreamingRows
from recipes.training.train_data import load_rows, load_stream, load_streams
from recipes.training.trainer import LlavaTrainer
from tests import training


STREAM = {"streaming": True, "max_steps": 6, "stream_buffer": 6, "learning_rate": 1e-3, "optim": "adamw_torch"}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training.write_data_and_start(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bad", [0, 3])
def test_a_line_that_is_no_utf8_is_named(workplace, bad):
    lines = Path("data.jsonl").read_bytes().splitlines(keepends=True)
    lines[bad] = lines[bad].replace(b'"text": "', b'"text": "\xe9', 1)
    Path("data-1.jsonl").write_bytes(b"".join(lines))
    words = f"`data-1.jsonl`, line {bad + 1}: 'utf-8' codec can't decode byte 0xe9 .* Save the file as UTF-8"
    with pytest.raises(ValueError, match=words):
        load_rows("data-*.jsonl")
    with pytest.raises(ValueError, match=words):
        training.run(workplace, **STREAM, data=["data.jsonl", "data-*.jsonl"])
    with pytest.raises(ValueError, match="A text of the stream is no UTF-8"):
        source = load_dataset("json", data_files="data-1.jsonl", split="train", streaming=True)
        list(StreamingRows(source, None, max_length=300))


@pytest.fixture
def seen(monkeypatch):
    """The ids of the conversations of every micro-batch that was trained on."""
    batches = []
    step = LlavaTrainer.training_step

    def spy(self, model, inputs, *args, **kwargs):
        batches.append(list(inputs["ids"]))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LlavaTrainer, "training_step", spy)
    return batches


def log_and_weights(folder):
    log = json.loads(Path(folder, "training.json").read_text())["log"]
    names = ("step", "loss", "grad_norm", "learning_rate", "epoch")
    return [{n: e[n] for n in names} for e in training.steps_of(log)], load_file(Path(folder, "model.safetensors"))


@pytest.mark.parametrize(
    "changes", [{}, {"dataloader_num_workers": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}]
)
def test_a_stream_goes_on_where_it_was_stopped(workplace, seen, capsys, changes):
    load_rows("data.jsonl").save_to_disk("saved")  # of several shards, so that workers get some each
    options = STREAM | changes | {"data": ["saved"], "save_strategy": "steps", "save_steps": 1}
    training.run(workplace, **options, output_dir="whole")
    whole, seen[:] = list(seen), []

    class Stopped(Exception):
        pass

    step = LlavaTrainer.training_step

    def stop(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 4:
            raise Stopped
        return step(self, model, inputs, *args, **kwargs)

    LlavaTrainer.training_step, before = stop, step
    with pytest.raises(Stopped):
        training.run(workplace, **options, output_dir="stopped")
    LlavaTrainer.training_step = before
    trainer = training.run(workplace, **options, output_dir="stopped")
    assert "going on from stopped/checkpoint-4" in capsys.readouterr().out
    assert seen == whole and len({tuple(ids) for ids in whole}) > 3
    (log, weights), (other_log, other_weights) = log_and_weights("whole"), log_and_weights("stopped")
    assert log == other_log and len(log) == 6
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert trainer.state.global_step == 6


def test_every_conversation_of_a_stream_is_trained_on(workplace, seen):
    training.run(workplace, **STREAM)
    counts = Counter(name for ids in seen for name in ids)
    names = {json.loads(line)["id"] for line in Path("data.jsonl").read_text().splitlines()}
    assert counts.keys() == names and max(counts.values()) - min(counts.values()) <= 1


def test_a_stream_trains_as_the_same_rows_do(workplace):
    """One conversation a row and one block: the same losses as from planned rows, whatever their order."""
    options = {"max_steps": 12, "max_length": 160, "learning_rate": 0.0}
    training.write_data(workplace / "data.jsonl", trees=12, per_tree=1)
    losses = []
    for changes in ({}, {"streaming": True, "stream_buffer": 12}):
        trainer = training.run(workplace, **options, **changes, output_dir=f"out-{len(losses)}")
        losses.append(sorted(entry["loss"] for entry in training.steps_of(trainer.state.log_history)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0][0] < losses[0][-1]


def test_conversations_that_cannot_be_used_are_counted(workplace, caplog):
    rows = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    rows[3]["messages"][1]["content"][0]["text"] = " "
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=f"conversation `{rows[3]['id']}` is an empty answer"):
        training.run(workplace, **STREAM)
    with caplog.at_level(logging.WARNING):
        training.run(workplace, **STREAM, skip_invalid=True)
    assert rows[3]["id"] in caplog.text
    dropped = json.loads(Path("out/training.json").read_text())["data"]["dropped_by_this_process"]
    assert dropped.keys() == {"Message N of a conversation is an empty answer"} and min(dropped.values()) >= 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_steps": -1}, "`streaming` needs `max_steps`"),
        ({"packing": False}, "`streaming` goes with `packing`"),
        ({"cache_image_features": "cache"}, "goes without `streaming`"),
    ],
)
def test_choices_that_do_not_go_together(workplace, changes, words):
    with pytest.raises(ValueError, match=words):
        training.run(workplace, **STREAM | changes)


def test_a_stream_continued_by_other_workers_is_refused(workplace):
    options = STREAM | {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    training.run(workplace, **options)
    Path("out/training.json").unlink()
    record = json.loads(Path("out/run.json").read_text())
    Path("out/run.json").write_text(json.dumps(record | {"max_steps": 4}))
    with pytest.raises(ValueError, match="saved with 1 lanes .* but now there are 2"):
        training.run(workplace, **options | {"max_steps": 4, "dataloader_num_workers": 2})


def test_streams_and_rows_have_the_same_pictures(workplace):
    rows = load_rows("data.jsonl")
    rows.save_to_disk("saved")
    Path("parquet").mkdir()
    load_dataset("json", data_files="data.jsonl", split="train").to_parquet("parquet/part-0.parquet")
    for name in ("data.jsonl", "saved", "parquet", "parquet/*.parquet"):
        for loaded in (load_rows(name), load_stream(name)):
            images = [row["images"][0]["path"] for row in loaded]
            assert [Path(path).name for path in images] == [Path(row["images"][0]["path"]).name for row in rows]


def test_streams_are_mixed_by_their_weights(workplace):
    training.write_data(workplace / "text.jsonl", trees=0, text_only=9)
    mixed, facts = load_streams(["data.jsonl", "text.jsonl"], [3, 1], None, seed=0)
    kinds = Counter(row["id"].startswith("text") for row in mixed.take(12))
    assert kinds[False] > 1.5 * kinds[True] > 0
    assert [fact["weight"] for fact in facts] == [3, 1]
    assert load_streams(["data.jsonl"], None, None, 0)[1] == [{"data": "data.jsonl", "streamed": True, "weight": 1.0}]


def test_a_folder_that_is_no_data_set_is_refused(workplace):
    with pytest.raises(ValueError, match="`start` is there, but no data set"):
        load_rows("start")
    with pytest.raises(ValueError, match="`nothing-.*.jsonl`, which is no file"):
        load_stream("nothing-*.jsonl")
