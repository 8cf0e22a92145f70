"""Batches of trees: exact tensors, and that each conversation meets in them only itself."""

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processing import ImageError
from processing.collator import PaddedCollator, TreeCollator
from processing.encoding import IGNORE
from processing.packing import plan_rows
from processing.rows import PackedRows, Tree, encode_rows
from tests import tiny_text
from tests.conversations import assistant, encoded_dataset, ids_in, png, sample, user
from tests.tiny import NUM_PATCHES


IMG = tiny_text.processor().image_token_id
PAD = tiny_text.processor().tokenizer.pad_token_id
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tree(prefix, *conversations, images=()):
    ids, answers = zip(*conversations, strict=True)
    names = [str(i) for i in range(len(ids))]
    return Tree(prefix, names, [np.array(i, np.int32) for i in ids], [np.array(a) for a in answers], list(images))


SHARED = tree(3, ([1, IMG, 9, 7, 5, 6], [[4, 6]]), ([1, IMG, 9, 8, 6], [[3, 5]]))
ALONE = tree(0, ([1, 7, 5, 6], [[2, 4]]))
ROWS = [{"trees": [SHARED, ALONE]}, {"trees": [ALONE]}, {"trees": []}]


def collate(rows, layout, **options):
    return TreeCollator(tiny_text.processor(), layout, **options)(rows)


def test_exact_tensors():
    batch = collate(ROWS, "end")
    assert batch["input_ids"].tolist() == [
        [1, IMG, IMG, IMG, IMG, 9, 7, 5, 6, 8, 6, 1, 7, 5, 6],
        [1, 7, 5, 6] + [PAD] * 11,
        [PAD] * 15,
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 0, 1, 2, 3],
        [0, 1, 2, 3] + [0] * 11,
        [0] * 15,
    ]
    assert batch["end"].tolist() == [
        [11] * 6 + [9] * 3 + [11] * 2 + [15] * 4,
        [4] * 4 + list(range(5, 16)),
        list(range(1, 16)),
    ]
    # The second answer of the shared image begins a branch: the last token of the prefix predicts it.
    assert batch["keep"].tolist() == [6, 7, 5, 9, 12, 13, 15 + 1, 15 + 2]
    assert batch["shift_labels"].tolist() == [[5, 6, 8, 6, 5, 6, 5, 6]]
    assert batch["labels"] is batch["shift_labels"]
    assert set(batch) == {"input_ids", "position_ids", "end", "keep", "shift_labels", "labels"}


def test_exact_segments():
    segments = collate(ROWS, "segments")["segments"]
    assert segments.dtype == torch.long
    assert segments.tolist() == [
        [0, 0, 6, 0, 0],
        [0, 6, 9, 0, 6],
        [0, 9, 11, 0, 6],
        [0, 11, 15, 0, 0],
        [1, 0, 4, 0, 0],
    ]


def test_exact_varlen():
    batch = collate(ROWS, "varlen")
    assert batch["cu_seq_q"].dtype == batch["cu_seq_k"].dtype == torch.int32
    assert batch["cu_seq_q"].tolist() == [0, 6, 9, 11, 15, 19, 30, 45]
    assert batch["cu_seq_k"].tolist() == [0, 6, 15, 23, 27, 31, 42, 57]
    assert batch["kv_index"].dtype == torch.int64
    assert batch["kv_index"].tolist() == [
        *range(6),
        *range(6),
        *range(6, 9),
        *range(6),
        *range(9, 11),
        *range(11, 15),
        *range(15, 19),
        *range(19, 30),
        *range(30, 45),
    ]
    assert (batch["max_q"], batch["max_k"]) == (15, 15)
    assert type(batch["max_q"]) is type(batch["max_k"]) is int


def test_a_shared_position_may_predict_several_tokens():
    batch = collate([{"trees": [tree(2, ([1, IMG, 5], [[2, 3]]), ([1, IMG, 6], [[2, 3]]))]}], "end")
    assert batch["keep"].tolist() == [4, 4]
    assert batch["shift_labels"].tolist() == [[5, 6]]


@pytest.mark.parametrize("layout", ["end", "segments", "varlen"])
def test_a_batch_without_a_tree_still_has_every_tensor(layout):
    batch = collate([{"trees": []}, {"trees": []}], layout)
    assert batch["input_ids"].tolist() == batch["input_ids"].new_full((2, 1), PAD).tolist()
    assert batch["keep"].shape == (0,) and batch["shift_labels"].shape == (1, 0)
    assert batch["keep"].dtype == batch["shift_labels"].dtype == torch.long
    assert "pixel_values" not in batch
    if layout == "segments":
        assert batch["segments"].shape == (0, 5)
    if layout == "varlen":
        assert batch["cu_seq_q"].tolist() == batch["cu_seq_k"].tolist() == [0, 1, 2]


def test_length_of_rows():
    assert collate(ROWS, "end", pad_to=20)["end"].shape == (3, 20)
    assert collate(ROWS, "end", pad_to_multiple_of=8)["end"].shape == (3, 16)
    assert collate(ROWS, "end", pad_to=20, pad_to_multiple_of=16)["end"].shape == (3, 32)
    with pytest.raises(ValueError, match="A row has 15 tokens, but `pad_to` is 14"):
        collate(ROWS, "end", pad_to=14)
    with pytest.raises(ValueError, match="`layout` is 'flat', wanted"):
        collate(ROWS, "flat")


# From here on, an oracle: which conversations a batch holds is read from its segments alone.


def leaves(batch):
    """(row, positions in the row) of every conversation: a branch with its prefix, or a segment that has no branch."""
    segments = batch["segments"].tolist()
    prefixes = {(row, start, end) for row, _, _, start, end in segments}
    for row, start, end, prefix_start, prefix_end in segments:
        if prefix_end > prefix_start or (row, start, end) not in prefixes:
            yield row, [*range(prefix_start, prefix_end), *range(start, end)]


def expanded(ids, answers):
    """Ids and supervised places of one conversation as the model would see it alone, token by token."""
    flat, supervised = [], []
    for i, token in enumerate(ids):
        if any(start <= i < end for start, end in answers):
            supervised.append(len(flat))
        flat += [token] * (NUM_PATCHES if token == IMG else 1)
    return flat, supervised


def dense(batch, layout, shape):
    """(rows, queries, keys): who sees whom."""
    num_rows, length = shape
    seen = torch.zeros(num_rows * length, num_rows * length, dtype=torch.bool)
    if layout == "end":
        for row in range(num_rows):
            for q in range(length):
                for k in range(q + 1):
                    seen[row * length + q, row * length + k] = q < batch["end"][row, k]
    elif layout == "segments":
        for row, start, end, prefix_start, prefix_end in batch["segments"].tolist():
            for q in range(start, end):
                at = row * length
                seen[at + q, at + prefix_start : at + prefix_end] = True
                seen[at + q, at + start : at + q + 1] = True
    else:
        queries, keys = batch["cu_seq_q"].tolist(), batch["cu_seq_k"].tolist()
        for n in range(len(queries) - 1):
            num_q, num_k = queries[n + 1] - queries[n], keys[n + 1] - keys[n]
            assert num_q <= batch["max_q"] and num_k <= batch["max_k"]
            for q in range(num_q):
                last = num_k - num_q + q + 1  # causal, aligned at the end
                seen[queries[n] + q, batch["kv_index"][keys[n] : keys[n] + last]] = True
        assert queries[-1] == num_rows * length
    return seen


token = st.integers(4, 6)
answer_lengths = st.lists(st.integers(1, 3), min_size=1, max_size=2)
groups = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.booleans(),
        st.lists(st.tuples(st.lists(token, max_size=3), answer_lengths), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@relaxed
@given(groups, st.integers(1, 3), st.integers(0, 1))
def test_every_conversation_meets_only_itself(groups, rows_per_step, begin):
    records = []
    for number, (images, shared, branches) in enumerate(groups):
        for question, lengths in branches:
            ids, answers = [1] * begin + [2] * images, []
            for length in lengths:
                start = len(ids) + len(question)
                answers.append([start, start + length])
                ids = ids + question + [4] * length
            records.append((ids, answers, str(number) if shared and images else ""))
    encoded = encoded_dataset(records)
    made = plan_rows(encoded, max_length=40, rows_per_step=rows_per_step, tokens_per_image=NUM_PATCHES)
    rows = PackedRows(Dataset.from_dict({"messages": [[]] * len(records)}), encoded, made)
    step = [rows[i] for i in range(rows_per_step)]
    for row in step:  # the tests' image token to the processor's
        for one in row["trees"]:
            one.input_ids = [np.where(ids == 2, IMG, ids) for ids in one.input_ids]

    batches = {layout: collate(step, layout) for layout in ("end", "segments", "varlen")}
    batch = batches["segments"]
    shape = batch["input_ids"].shape
    seen = {layout: dense(one, layout, shape) for layout, one in batches.items()}
    names = [name for row in step for one in row["trees"] for name in one.ids]
    found = list(leaves(batch))
    assert len(found) == len(names)

    tokens_of_rows = torch.zeros(shape, dtype=torch.bool)
    supervision = Counter()
    for name, (row, positions) in zip(names, found, strict=True):
        ids, answers, _ = records[int(name)]
        flat, supervised = expanded([IMG if token == 2 else token for token in ids], answers)
        assert batch["input_ids"][row, positions].tolist() == flat
        assert batch["position_ids"][row, positions].tolist() == list(range(len(flat)))
        for t, q in enumerate(positions):
            visible = [row * shape[1] + k for k in positions[: t + 1]]
            for layout in seen:
                assert seen[layout][row * shape[1] + q].nonzero()[:, 0].tolist() == visible, layout
        tokens_of_rows[row, positions] = True
        supervision.update((row * shape[1] + positions[t - 1], flat[t]) for t in supervised if t > 0)

    assert Counter(zip(batch["keep"].tolist(), batch["shift_labels"][0].tolist(), strict=True)) == supervision
    # What belongs to no conversation is padding, which sees something and is seen by padding alone.
    pads = ~tokens_of_rows.flatten()
    assert (batch["input_ids"].flatten()[pads] == PAD).all()
    assert seen["end"][pads].any(1).all() and seen["varlen"][pads].any(1).all()
    assert not seen["segments"][pads].any()


# With a processor, pictures and text.

CONVERSATIONS = [
    sample("a0", "What is it?", "A red circle."),
    sample("a1", "What color is it?", "Red."),
    sample("b0", color="blue"),
    {
        "id": "two",
        "messages": [user("Both?", 2), assistant("Yes."), user("Sure?"), assistant("I am.")],
        "images": [png("green"), png("blue")],
    },
    {"id": "text", "messages": [user("Hi."), assistant("Hello.")], "images": []},
    {
        "id": "late",
        "messages": [user("Hi."), assistant("Yes?"), user("See", 1), assistant("A dot.")],
        "images": [png()],
    },
    sample("a2", "What is it?", "A red circle."),
]


def packed(processor, dataset, max_length=600, **options):
    encoded, _ = encode_rows(dataset, processor, max_length)
    made = plan_rows(encoded, max_length=max_length, tokens_per_image=NUM_PATCHES, rows_per_step=1, **options)
    return PackedRows(dataset, encoded, made)


def supervision_of_padded(processor, rows, max_length=None):
    found = {}
    for row in rows:
        batch = PaddedCollator(processor, max_length)([row])
        places = (batch["labels"][0] != IGNORE).nonzero()[:, 0]
        found[row["id"]] = (
            batch["input_ids"][0].tolist(),
            Counter((int(t) - 1, int(batch["labels"][0, t])) for t in places),
        )
    return found


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind, template", [("llama", "vicuna_v1"), ("qwen", "chatml")])
def test_trees_supervise_what_padded_rows_do(kind, template, shared):
    processor = tiny_text.processor(kind, template)
    conversations = [c if shared else {**c, "image_id": c["id"]} for c in CONVERSATIONS]
    rows = packed(processor, Dataset.from_list(conversations))
    assert (rows.plan.summary.sharing > 1) == shared

    found = {}
    for i in range(len(rows)):
        batch = TreeCollator(processor, "segments")([rows[i]])
        predicted = list(zip(batch["keep"].tolist(), batch["shift_labels"][0].tolist(), strict=True))
        for name, (_, positions) in zip(ids_in(rows[i]), leaves(batch), strict=True):
            here = batch["input_ids"][0, positions].tolist()
            own = [p for p in predicted if p[0] in positions and positions.index(p[0]) + 1 < len(here)]
            own = [(positions.index(q), target) for q, target in own if here[positions.index(q) + 1] == target]
            found[name] = (here, Counter(dict.fromkeys(own, 1)))
    assert found == supervision_of_padded(processor, CONVERSATIONS)


def test_pictures_come_once_in_the_order_of_their_tokens():
    processor = tiny_text.processor()
    rows = packed(processor, Dataset.from_list(CONVERSATIONS), max_length=200)
    batch = TreeCollator(processor, "end")([rows[i] for i in range(len(rows))])
    assert (batch["input_ids"] == IMG).sum() == NUM_PATCHES * len(batch["pixel_values"])
    wanted = []
    for i in range(len(rows)):
        for _, numbers in rows.plan.trees_of(i):
            wanted += CONVERSATIONS[numbers[0]]["images"]
    assert len(wanted) == 1 + 1 + 2 + 1  # a0, a1 and a2 share one
    assert torch.equal(batch["pixel_values"], processor.pixel_values(wanted))


def test_truncated_conversations_lose_the_same_turns_and_images():
    processor = tiny_text.processor()
    late = CONVERSATIONS[5]
    max_length = len(processor.encode_text(late["messages"], for_training=True).input_ids) - 1
    rows = packed(processor, Dataset.from_list([late]), max_length)
    batch = TreeCollator(processor, "end")([rows[0]])
    assert "pixel_values" not in batch
    ((ids, supervised),) = supervision_of_padded(processor, [late], max_length).values()
    assert batch["input_ids"][0].tolist() == ids
    assert Counter(zip(batch["keep"].tolist(), batch["shift_labels"][0].tolist(), strict=True)) == supervised


def test_a_broken_picture_names_its_conversation():
    processor = tiny_text.processor()
    broken = sample("broken one") | {"images": [{"bytes": b"no image", "path": None}]}
    rows = packed(processor, Dataset.from_list([broken]))
    with pytest.raises(ImageError, match="Image `0` of conversation `broken one`"):
        TreeCollator(processor, "end")([rows[0]])


def test_padded_rows_are_padded_on_the_right():
    processor = tiny_text.processor()
    batch = PaddedCollator(processor)(CONVERSATIONS[:2])
    lengths = batch["attention_mask"].sum(1).tolist()
    assert max(lengths) == batch["input_ids"].shape[1] and min(lengths) < max(lengths)
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row, :length].all()
        assert (batch["input_ids"][row, length:] == PAD).all() and (batch["labels"][row, length:] == IGNORE).all()
    assert batch["pixel_values"].shape[0] == 2
