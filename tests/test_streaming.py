"""Rows of a stream: nothing lost among processes and workers, and continued exactly from any row."""

import json
import logging
from collections import Counter

import pytest
import torch
from datasets import Dataset, Image, List

from processing.streaming import StreamingRows
from tests import tiny_text
from tests.conversations import assistant, sample, user


COLORS = ("red", "blue", "green")


def dataset(num_samples=23):
    return Dataset.from_list(
        [sample(str(i), f"Question {i}?", "Answer " * (i % 4 + 1), COLORS[i // 2 % 3]) for i in range(num_samples)]
    )


def stream(num_shards=4, num_samples=23, **options):
    options = {"max_length": 300, "buffer_size": 5, "epochs": 1} | options
    source = dataset(num_samples).to_iterable_dataset(num_shards=num_shards)
    return StreamingRows(source, tiny_text.processor(), **options)


def contents(row):
    return [(tree.prefix, tuple(tree.ids), [image["bytes"] for image in tree.images]) for tree in row["trees"]]


def names(rows):
    return Counter(name for row in rows for tree in row["trees"] for name in tree.ids)


def first(rows):
    return rows[0]


ALL = Counter(map(str, range(23)))


def test_every_conversation_comes_once():
    rows = list(stream())
    assert names(rows) == ALL
    assert any(tree.prefix for row in rows for tree in row["trees"])
    assert names(list(stream(epochs=3))) == Counter({name: 3 for name in ALL})


def test_epochs_and_blocks_differ_and_seeds_decide():
    one, two = list(map(contents, stream(epochs=2))), list(map(contents, stream(epochs=2)))
    assert one == two
    assert one != list(map(contents, stream(epochs=2, seed=1)))
    assert one[: len(one) // 2] != one[len(one) // 2 :]


def test_shards_come_in_another_order_in_every_epoch():
    rows = [names([row]) for row in stream(4, 20, epochs=6, max_length=1000)]  # a block of 5 is a shard and a row
    assert len(rows) == 24
    assert len({tuple(map(min, rows[i : i + 4])) for i in range(0, 24, 4)}) > 2


def test_pictures_are_left_to_the_collator():
    source = dataset(3).cast_column("images", List(Image())).to_iterable_dataset()
    rows = list(StreamingRows(source, tiny_text.processor(), max_length=1000, epochs=1))
    assert all(isinstance(image["bytes"], bytes) for row in rows for tree in row["trees"] for image in tree.images)


@pytest.mark.parametrize("num_shards", [1, 4, 6])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_and_workers_divide_the_stream(num_shards, num_workers):
    found = Counter()
    for rank in range(2):
        rows = stream(num_shards, rank=rank, world_size=2)
        found += names(torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=first, num_workers=num_workers))
    assert found == ALL


@pytest.mark.parametrize("num_shards, rank", [(4, 0), (3, 1)])
def test_a_stream_continues_exactly_from_any_row(num_shards, rank):
    options = {"epochs": 2, "rank": rank, "world_size": 2}
    rows, states = [], []
    running = stream(num_shards, **options)
    for row in running:
        rows.append(contents(row))
        states.append(json.dumps(running.state_dict()))
    assert len(rows) > 6
    for i, state in enumerate(states):
        resumed = stream(num_shards, **options)
        resumed.load_state_dict(json.loads(state))
        assert resumed.state_dict() == json.loads(state)
        assert list(map(contents, resumed)) == rows[i + 1 :]


def row_and_state(rows):
    """In a worker: the row, and where that worker is now."""
    return contents(rows[0]), torch.utils.data.get_worker_info().dataset.state_dict()


def test_workers_continue_exactly_from_any_batch():
    def batches(rows):
        return torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=row_and_state, num_workers=2)

    whole = list(batches(stream(epochs=2)))
    for stop in (3, 4):
        states = [whole[stop - 1 - (stop - 1 - worker) % 2][1] for worker in range(2)]
        assert [state["lane"] for state in states] == [0, 1]
        resumed = stream(epochs=2)
        resumed.load_state_dict(json.loads(json.dumps({"workers": states, "next": stop % 2})))
        assert [row for row, _ in batches(resumed)] == [row for row, _ in whole[stop:]]


def test_a_state_of_other_lanes_is_refused():
    running = stream(world_size=2)
    next(iter(running))
    resumed = stream(world_size=3)
    resumed.load_state_dict(running.state_dict())
    with pytest.raises(ValueError, match="saved with 2 lanes .* but now there are 3"):
        next(iter(resumed))


def test_a_lane_without_conversations_is_an_error_and_no_endless_loop():
    with pytest.raises(ValueError, match="Lane 2 of 3 .* found nothing to train on"):
        list(stream(1, num_samples=2, epochs=None, rank=2, world_size=3))


def test_streams_go_on_without_end_by_default():
    rows = iter(stream(1, num_samples=3, epochs=None))
    assert names(next(rows) for _ in range(20)).total() >= 20


BAD = [
    {"id": "mute", "messages": [user("Q"), assistant("")]},
    {"id": "fine", "messages": [user("Q"), assistant("A")]},
]


def test_bad_conversations_stop_a_stream_or_are_counted(caplog):
    source = Dataset.from_list(BAD).to_iterable_dataset()
    options = {"max_length": 300, "epochs": 1}
    with pytest.raises(ValueError, match="Message 1 of conversation `mute` is an empty answer.* set `skip_invalid`"):
        list(StreamingRows(source, tiny_text.processor(), **options))
    rows = StreamingRows(source, tiny_text.processor(), **options, skip_invalid=True)
    with caplog.at_level(logging.WARNING):
        assert names(rows) == {"fine": 1}
    assert rows.rejected == {"Message N of a conversation is an empty answer": 1}
    assert "1 conversations of this block cannot be used, the first: Message 1 of conversation `mute`" in caplog.text


def test_rows_have_no_more_images_than_asked():
    rows = list(stream(max_images=1, max_length=2000, buffer_size=50))
    assert max(sum(len(tree.images) for tree in row["trees"]) for row in rows) == 1
    assert names(rows) == ALL
