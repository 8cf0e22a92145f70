"""Replies that say what an earlier one said."""

import random

import pytest

from data_generation.duplicates import Duplicates
from data_generation.rejections import Rejected


def story(seed, length=120):
    rng = random.Random(seed)
    return [
        rng.choice(["cat", "dog", "rug", "tree", "house", "red", "blue", "by", "on", "under"]) for _ in range(length)
    ]


def turns(words):
    return [("What is it?", " ".join(words))]


def reason(duplicates, words, name):
    try:
        duplicates.check(turns(words), name)
    except Rejected as rejection:
        return f"{rejection.reason} {rejection.detail}"
    return None


def test_the_same_words_are_a_duplicate_whatever_their_case_and_signs():
    duplicates = Duplicates()
    assert reason(duplicates, ["Two", "dogs."], "1") is None
    assert reason(duplicates, ["two,", "DOGS"], "2") == "duplicate the same words as in `1`."
    assert reason(duplicates, ["three", "dogs"], "3") is None


def test_nearly_the_same_words_are_a_near_duplicate():
    duplicates = Duplicates(threshold=0.8)
    for seed in range(300):
        assert reason(duplicates, story(seed), str(seed)) is None
    found = 0
    for seed in range(300):
        words = story(seed)
        words[60] = "giraffe"  # 5 of 118 runs of five words change: 0.92 in common
        found += (reason(duplicates, words, f"again {seed}") or "").endswith(f"of the wording of `{seed}`.")
    assert found > 280
    far = story(7)
    far[::6] = ["giraffe"] * len(far[::6])
    assert reason(duplicates, far, "far") is None
    assert reason(Duplicates(threshold=1.1), story(7), "1") is None


def test_only_exact_ones_are_found_when_near_ones_are_not_asked_for():
    duplicates = Duplicates(threshold=1.1)
    words = story(1)
    assert reason(duplicates, words, "1") is None
    assert reason(duplicates, [*words, "giraffe"], "2") is None
    assert reason(duplicates, words, "3").startswith("duplicate")


def test_memory_is_bounded_and_the_oldest_go_first():
    duplicates = Duplicates(capacity=10)
    for seed in range(200):
        assert reason(duplicates, story(seed), str(seed)) is None
        assert len(duplicates.recent) <= 10 and len(duplicates.bands) <= 80
    assert "`195`" in reason(duplicates, [*story(195), "giraffe"], "new")
    assert reason(duplicates, [*story(5), "giraffe"], "old") is None
    with pytest.raises(ValueError, match="remembers nothing"):
        Duplicates(capacity=0)
