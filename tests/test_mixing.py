"""Mixtures: how often each row is seen, and data sets of different columns."""

from collections import Counter

import pytest
from datasets import Dataset, Image, List

from processing.collator import TreeCollator
from processing.mixing import mix
from processing.packing import plan_rows
from processing.rows import PackedRows, encode_rows
from tests import tiny_text
from tests.conversations import assistant, ids_in, png, sample
from tests.tiny import NUM_PATCHES


PICTURES = Dataset.from_list([sample(f"p{i}", image_id="x", extra=i) for i in range(10)])
TEXTS = Dataset.from_list(
    [
        {"number": i, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Ho {i}"}]}
        for i in range(4)
    ]
)


def seen(dataset):
    return Counter(dataset["id"])


def test_weights_are_how_often_rows_are_seen():
    assert seen(mix([PICTURES, TEXTS])) == seen(PICTURES) + Counter(f"1/{i}" for i in range(4))
    assert set(seen(mix([PICTURES], [2.0])).values()) == {2}
    half = seen(mix([PICTURES], [0.5]))
    assert len(half) == 5 and set(half.values()) == {1}
    assert half == seen(mix([PICTURES], [0.5])) != seen(mix([PICTURES], [0.5], seed=1))
    assert Counter(seen(mix([PICTURES], [2.5])).values()) == {2: 5, 3: 5}


def test_whole_numbers_are_counts_of_rows():
    mixed = mix([PICTURES, TEXTS], [3, 6])
    assert Counter(mixed["source"]) == {"0": 3, "1": 6}
    assert Counter(seen(mixed.select(range(3, 9))).values()) == {1: 2, 2: 2}


def test_columns_and_kinds_of_image_references_may_differ():
    paths = Dataset.from_list([{**sample("path"), "images": ["a.png"], "source": "files"}])
    opened = PICTURES.cast_column("images", List(Image()))
    mixed = mix([PICTURES, TEXTS, paths, opened], [1, 1, 1, 1])
    assert mixed.column_names == ["id", "image_id", "messages", "source", "images"]
    assert mixed["source"] == ["0", "1", "files", "3"]
    assert mixed[0]["images"] == mixed[3]["images"] == [png()]
    assert mixed[1]["images"] is None and mixed[2]["images"] == [{"bytes": None, "path": "a.png"}]
    assert mixed[1]["messages"][0]["content"] == [{"type": "text", "text": "Hi"}]


def test_a_mixture_trains():
    processor = tiny_text.processor()
    mixed = mix([PICTURES, TEXTS], [1.0, 2.0])
    encoded, report = encode_rows(mixed, processor, 400)
    assert not report.counts
    made = plan_rows(encoded, max_length=800, rows_per_step=1, tokens_per_image=NUM_PATCHES)
    rows = PackedRows(mixed, encoded, made)
    assert seen(mixed) == Counter(name for i in range(len(rows)) for name in ids_in(rows[i]))
    batch = TreeCollator(processor, "segments")([rows[i] for i in range(len(rows))])
    assert batch["pixel_values"].shape[0] * NUM_PATCHES == (batch["input_ids"] == processor.image_token_id).sum()


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="There are 2 data sets and 1 weights"):
        mix([PICTURES, TEXTS], [1.0])
    with pytest.raises(ValueError, match="Data set 1 has 4 rows and the weight 0.1, which is 0 rows"):
        mix([PICTURES, TEXTS], [1.0, 0.1])
    with pytest.raises(ValueError, match="Data set 0 has no column `messages`, but text"):
        mix([Dataset.from_dict({"text": ["a"]})])
    inside = [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}, assistant("A")]
    with pytest.raises(ValueError, match="Conversation `a` has pictures inside its messages"):
        mix([Dataset.from_list([{"id": "a", "messages": inside}])])
