"""Plans: who shares a tree, that nothing is lost or repeated, that rows are full and steps are even."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processing.packing import grow_trees, plan_rows, read_samples
from tests.conversations import encoded_dataset


TOKENS_PER_IMAGE = 4
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def conversation(question, length, key="", images=1, answer=5):
    """Begin, image places, the question, and an answer of as many tokens as asked."""
    start = 1 + images + len(question)
    return [1] + [2] * images + question + [answer] * length, [[start, start + length]], key


def trees_of(records, max_length=100):
    trees = grow_trees(read_samples(encoded_dataset(records)), max_length, TOKENS_PER_IMAGE)
    return {
        tuple(trees.samples[start:end].tolist()): (int(prefix), int(tokens), int(images))
        for start, end, prefix, tokens, images in zip(
            trees.offsets, trees.offsets[1:], trees.prefix, trees.tokens, trees.images, strict=False
        )
    }


def samples_by_row(made):
    return [[int(i) for _, numbers in made.trees_of(row) for i in numbers] for row in range(len(made))]


def test_a_tree_has_the_longest_prefix_before_an_answer():
    assert trees_of(
        [
            conversation([7, 8, 9], 2, "a"),
            conversation([7, 8, 3], 4, "a"),
            conversation([7, 8, 9], 6, "b"),
            conversation([7, 8, 9], 6),
        ]
    ) == {
        (0, 1): (4, 7 + (1 + 2) + (1 + 4), 1),  # begin, image, 7 and 8
        (2,): (0, 14, 1),
        (3,): (0, 14, 1),
    }


def test_the_shorter_question_ends_the_prefix_even_if_its_answer_goes_on_alike():
    records = [conversation([7], 3, "a", answer=5), conversation([7, 5, 5], 3, "a", answer=5)]
    assert trees_of(records) == {(0, 1): (3, 6 + 3 + 5, 1)}


def test_identical_conversations_share_all_but_their_answers():
    assert trees_of([conversation([7, 8], 3, "a")] * 3) == {(0, 1, 2): (4, 7 + 3 * 3, 1)}


def test_rejected_conversations_are_in_no_tree():
    assert list(trees_of([([], [], ""), conversation([7], 2), ([], [], "")])) == [(1,)]


def test_a_group_that_is_too_long_becomes_several_trees():
    records = [conversation([7, i], 10, "a") for i in range(10, 17)]
    trees = trees_of(records, max_length=30)  # prefix 6, branches of 11
    assert list(trees) == [(0, 1), (2, 3), (4, 5), (6,)]
    assert [prefix for prefix, _, _ in trees.values()] == [3, 3, 3, 0]
    assert [tokens for _, tokens, _ in trees.values()] == [28, 28, 28, 17]


@pytest.mark.parametrize("max_length, trees", [(28, [(0, 1), (2,)]), (27, [(0,), (1,), (2,)])])
def test_a_tree_may_be_as_long_as_a_row(max_length, trees):
    records = [conversation([7, i], 10, "a") for i in range(10, 13)]
    assert list(trees_of(records, max_length)) == trees


def test_a_row_shorter_than_a_conversation_is_an_error():
    with pytest.raises(ValueError, match="Conversation number 1 has 25 tokens, but rows have 20"):
        trees_of([conversation([7], 2), conversation([7], 19)], max_length=20)


def test_nothing_to_plan_is_an_error():
    with pytest.raises(ValueError, match="no conversation to plan rows for"):
        trees_of([([], [], "")])


groups = st.lists(
    st.tuples(
        st.integers(0, 2),  # images
        st.booleans(),  # may be shared
        st.lists(st.tuples(st.lists(st.integers(6, 7), max_size=6), st.integers(1, 9)), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=30,
)


@relaxed
@given(groups, st.integers(1, 5), st.integers(1, 3), st.sampled_from([None, 1, 2, 3]), st.integers(26, 90))
def test_every_conversation_is_in_one_row_of_every_epoch(groups, rows_per_step, epochs, max_images, max_length):
    records = []
    for number, (images, shared, branches) in enumerate(groups):
        key = f"{number}" if shared and images else ""
        records += [conversation(question, length, key, images) for question, length in branches]
    encoded = encoded_dataset(records)
    arguments = {"max_length": max_length, "rows_per_step": rows_per_step, "tokens_per_image": TOKENS_PER_IMAGE}
    made = plan_rows(encoded, **arguments, epochs=epochs, max_images=max_images, seed=3)
    rows = samples_by_row(made)

    assert len(made) % rows_per_step == 0
    assert Counter(i for row in rows for i in row) == dict.fromkeys(range(len(records)), epochs)
    borders = [*made.epoch_starts, len(rows)]
    whole = [border for border in borders if border <= len(rows) - rows_per_step]  # the last step is spread
    for start, end in zip(whole, whole[1:], strict=False):
        assert sorted(i for row in rows[start:end] for i in row) == list(range(len(records)))

    for row in range(len(made)):
        tokens, images = 0, 0
        for prefix, numbers in made.trees_of(row):
            parts = [records[i] for i in numbers]
            shared = prefix + 3 * parts[0][0].count(2) if prefix else 0
            tokens += shared + sum(len(ids) + 3 * ids.count(2) - shared for ids, _, _ in parts)
            images += parts[0][0].count(2)
            assert len(parts) == 1 or (prefix and len({tuple(ids[:prefix]) for ids, _, _ in parts}) == 1)
            assert all(prefix <= answers[0][0] for _, answers, _ in parts)
            assert not prefix or max(i for i, token in enumerate(parts[0][0]) if token == 2) < prefix
        assert tokens <= max_length
        assert max_images is None or images <= max_images or len(made.trees_of(row)) == 1

    again = plan_rows(encoded, **arguments, epochs=epochs, max_images=max_images, seed=3)
    assert np.array_equal(again.row_trees, made.row_trees) and np.array_equal(again.row_offsets, made.row_offsets)


def test_epochs_and_seeds_differ():
    encoded = encoded_dataset([conversation([7, i % 5], i % 9 + 1) for i in range(200)])
    arguments = {"max_length": 60, "rows_per_step": 2, "tokens_per_image": TOKENS_PER_IMAGE}
    made = plan_rows(encoded, **arguments, epochs=2, seed=0)
    rows = samples_by_row(made)
    second = made.epoch_starts[1]
    assert rows[:second] != rows[second:]
    assert rows != samples_by_row(plan_rows(encoded, **arguments, epochs=2, seed=1))
    # More epochs do not change what came before, but for the step that was the last.
    longer = samples_by_row(plan_rows(encoded, **arguments, epochs=3, seed=0))
    assert longer[: len(rows) - 2] == rows[:-2]


@pytest.mark.parametrize("num_samples, sizes", [(1, [0, 0, 0, 1]), (3, [0, 1, 1, 1]), (4, [1] * 4), (8, [2] * 4)])
def test_the_last_step_is_filled_by_spreading_its_trees(num_samples, sizes):
    encoded = encoded_dataset([conversation([7], 3) for _ in range(num_samples)])
    made = plan_rows(encoded, max_length=1000, rows_per_step=4, tokens_per_image=TOKENS_PER_IMAGE)
    assert sorted(len(row) for row in samples_by_row(made)) == sizes
    assert made.summary.steps == 1


def llava_like(num_images, seed=0):
    """Lengths and sharing as in LLaVA-Instruct-158K: 2 conversations an image, 880 tokens with 576 of the image."""
    rng = np.random.default_rng(seed)
    records = []
    for image in range(num_images):
        kinds = [kind for kind, share in (("talk", 0.72), ("detail", 0.28), ("reason", 0.95)) if rng.random() < share]
        for kind in kinds or ["reason"]:
            low, high = {"talk": (300, 450), "detail": (90, 170), "reason": (130, 250)}[kind]
            question = [int(rng.integers(6, 30_000)) for _ in range(15)]
            ids, answers, _ = conversation([9] * 36 + question, int(rng.integers(low, high)))
            records.append((ids, answers, str(image)))
    return records


def test_rows_of_a_llava_like_mix_are_full_and_steps_are_even():
    encoded = encoded_dataset(llava_like(4_000))
    # 576 tokens an image, where `encoded_dataset` counts 4.
    encoded = encoded.map(lambda row: {"num_tokens": row["num_tokens"] + 572})
    made = plan_rows(encoded, max_length=4096, rows_per_step=16, tokens_per_image=576)
    assert made.summary.filled > 0.95
    assert made.summary.waste < 0.02
    assert 1.4 < made.summary.sharing < 1.6
    costs = np.array(
        [
            sum(made.trees.costs[made.row_trees[a:b]])
            for a, b in zip(made.row_offsets, made.row_offsets[1:], strict=False)
        ]
    )
    steps = costs.reshape(-1, 16)[:-1]
    assert (steps.max(1) / steps.mean(1)).mean() < 1.02
    # Steps do not go from costly to cheap.
    assert abs(np.corrcoef(np.arange(len(steps)), steps.mean(1))[0, 1]) < 0.5
    # What a dataloader worker is sent is arrays.
    assert len(pickle.dumps(made)) < 100 * len(encoded)


def test_the_summary_is_one_line():
    records = [conversation([7, 8], 4, "a"), conversation([7, 9], 4, "a"), conversation([7], 8)]
    made = plan_rows(encoded_dataset(records), max_length=40, rows_per_step=1, tokens_per_image=TOKENS_PER_IMAGE)
    assert str(made.summary) == (
        "3 conversations in 2 trees, sharing 1.20x; 1 epochs in 1 rows, 75.0% filled, 0.0% padding; "
        "1 steps of 3.0 conversations and 2.0 images"
    )
