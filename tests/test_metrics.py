"""The rules of benchmarks, each against numbers worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.measuring.metrics.choice import circular, letter, rotated, unrotated
from recipes.measuring.metrics.intervals import Estimate, mean, share
from recipes.measuring.metrics.open_answers import gqa_form, normalize, same, soft
from recipes.measuring.metrics.yes_no import outcomes, pope, pope_mean, yes_or_no
from recipes.measuring.score_files import textvqa_question


OPTIONS = {"A": "a red cup", "B": "two spoons", "C": "nothing", "D": "Nothing."}


def values(table: dict[str, Estimate]) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in table.items()}


# Intervals


def test_wilson():
    # z = 1.96: (0.8 + 0.192073) / 1.384146 -+ 1.96 sqrt(0.016 + 0.009604) / 1.384146
    found = share(8, 10)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert share(0, 10).low == 0
    assert share(10, 10).high == pytest.approx(1)
    assert share(0, 0) == Estimate(None)


def test_bootstrap_of_a_mean():
    # 50 of 100: 2.5 % of the binomial distribution lie at 40 and below, 97.5 % at 60 and below.
    found = mean([1.0, 0.0] * 50)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.4, 0.6))
    assert mean([0.3] * 7) == Estimate(*[pytest.approx(0.3)] * 3)
    assert mean([]) == Estimate(None)


# POPE


@pytest.mark.parametrize(
    "text, said",
    [
        ("yes", "yes"),
        ("Yes, there is a dog.", "yes"),
        ("No", "no"),
        ("NO\n", "no"),
        ("no, there is not", "no"),
        ("There isn't one. Yes, really.", "no"),
        ("I don’t see it", "no"),
        ("Yes. But no cat.", "yes"),
        ("Yes, but no cat", "no"),
        ("I know it, yes", "yes"),
        ("a notable dog", None),
        ("", None),
        (". no", None),
    ],
)
def test_yes_or_no(text, said):
    assert yes_or_no(text) == said


def test_pope_by_hand():
    said = ["yes", "yes", "yes", "no", "no"]
    labels = ["yes", "yes", "no", "no", "yes"]
    assert outcomes(said, labels) == (2, 1, 1, 1)
    found = values(pope(2, 1, 1, 1))
    assert found == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5}
    )


def test_pope_without_a_denominator():
    never_yes = values(pope(0, 0, 4, 0))
    assert never_yes == {"accuracy": 1, "precision": None, "recall": None, "f1": None, "yes_ratio": 0}
    assert values(pope_mean([(2, 1, 1, 1), (0, 0, 4, 0)]))["accuracy"] == pytest.approx(0.8)


def test_the_mean_of_categories_counts_each_once():
    found = values(pope_mean([(1, 1, 1, 1), (20, 10, 10, 0)]))
    assert found == pytest.approx(
        {"accuracy": 0.625, "precision": 7 / 12, "recall": 0.75, "f1": 0.65, "yes_ratio": 0.625}
    )


# Words


@pytest.mark.parametrize(
    "text, form",
    [
        ("The Cat.", "cat"),
        ("a", ""),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("11 a.m.", "11 am"),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("1,000", "1000"),
        ("Is it? Yes", "is it yes"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("dog's bowl", "dog 's bowl"),
        ("left-hand", "left hand"),  # no blank beside the mark: a blank
        ("left -hand", "left hand"),  # one beside it: gone
        ("a-b - c", "ab c"),  # ... everywhere
        ("x/y (z)", "x y z"),
        ("line\none\ttwo", "line 1 2"),
        ("." * 40 + "dog", "dog"),  # the benchmark's code would leave 8 of these
    ],
)
def test_normalize(text, form):
    assert normalize(text) == form


@pytest.mark.parametrize("matches, score", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_leaves_one_person_out(matches, score):
    assert soft("Two.", ["2"] * matches + ["cat"] * (10 - matches)) == pytest.approx(score)


def test_an_empty_answer_is_wrong():
    assert soft(" ", ["the"] * 10) == 0
    assert soft("A", ["a"] * 10) == 1  # both are nothing but an article
    assert not same("", "the")
    assert same("The dog.", "dog")


def test_gqa_forgives_case_and_the_full_stop():
    assert gqa_form(" Left.\n") == "left"
    assert gqa_form("the left") != "left"


# Letters


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("B", "B"),
        (" b ", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. two spoons", "B"),
        ("(B) anything", "B"),
        ("B: since", "B"),
        ("The answer is B.", "B"),
        ("I think the answer is (B), since", "B"),
        ("Answer: B", "B"),
        ("The answer is option B", "B"),
        ("Option A or option B", None),
        ("The answer is A. No, the answer is B.", None),
        ("Two Spoons.", "B"),
        ("nothing", None),  # of two options
        ("E", None),
        ("The answer is E.", None),
        ("A cup", None),
        ("Apple", None),
        ("The answer is A cup", None),
        ("The answer is Apple", None),
        ("A.M.", None),
        ("", None),
    ],
)
def test_letter(text, chosen):
    assert letter(text, OPTIONS) == chosen


@given(st.text(max_size=40))
def test_no_letter_that_is_no_option(text):
    assert letter(text, OPTIONS) in (None, *OPTIONS)


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "{}.", "({})", "{}. x y", "The answer is {}.", "Answer: {}"]))
def test_every_form_of_every_letter(name, form):
    assert letter(form.format(name), OPTIONS) == name


def test_rotations():
    options = {"A": "x", "B": "y", "C": "z"}
    assert rotated(options, 1) == {"A": "y", "B": "z", "C": "x"}
    assert rotated(options, 3) == options
    for turns in range(3):
        for shown, text in rotated(options, turns).items():
            assert options[unrotated(shown, options, turns)] == text
    answers = [("1", 2, True), ("2", 2, True), ("1", 2, False), ("2", 2, True), ("3", 3, True), ("3", 3, True)]
    assert circular(answers) == {"1": False, "2": True}  # a rotation of 3 is missing


@pytest.mark.parametrize(
    "prompt",
    [
        "What year?",
        "<image>\nWhat year?\nReference OCR token: 1, 2\nAnswer the question.",
        "OCR tokens: 1 2. Question: What year? Short answer:",
    ],
)
def test_the_question_in_a_prompt(prompt):
    assert textvqa_question(prompt) == "What year?"
