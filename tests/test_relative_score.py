"""The relative score by arithmetic that is written out here."""

import pytest

from data_generation.relative_score import Scored, interval, legacy_scores, question_means, relative_scores


def one_order(*rows):
    """(question, kind, reference, candidate), judged once with the reference first."""
    return [Scored(question, kind, 0, "reference-first", *pair) for question, kind, *pair in rows]


def both_orders(question, kind, reference_first, candidate_first, repeat=0):
    """Pairs as (first, second) in the places they were shown in."""
    return [
        Scored(question, kind, repeat, "reference-first", *reference_first),
        Scored(question, kind, repeat, "candidate-first", *reversed(candidate_first)),
    ]


def test_a_ratio_of_means_and_no_mean_of_ratios():
    found = relative_scores(one_order(("a", "conv", 10, 5), ("b", "conv", 2, 2), ("c", "detail", 8, 9)), orders=1)
    assert list(found) == ["conv", "detail", "all"]
    # (5 + 2) / (10 + 2); a mean of ratios would be 75.
    assert found["conv"].score == pytest.approx(100 * 7 / 12)
    assert (found["conv"].reference, found["conv"].candidate) == (6.0, 3.5)
    assert found["detail"].score == pytest.approx(112.5)
    # Each question has the same weight, not each kind: 16 / 20.
    assert found["all"].score == pytest.approx(80.0)
    assert (found["all"].questions, found["all"].judgements, found["all"].incomplete) == (3, 3, 0)
    assert found["all"].repeats == (pytest.approx(80.0),)
    assert found["all"].spread is None and found["all"].position_bias is None


def test_a_judge_that_prefers_the_first_gives_100_and_full_bias():
    scored = both_orders("a", "conv", (9, 3), (9, 3)) + both_orders("b", "conv", (8, 7), (8, 7))
    found = relative_scores(scored, orders=2)["all"]
    assert found.score == 100.0
    assert (found.position_bias, found.first_always, found.second_always) == (1.0, 1.0, 0.0)
    assert found.first_minus_second == 3.5  # (6 + 6 + 1 + 1) / 4
    back = relative_scores(both_orders("a", "conv", (3, 9), (3, 9)), orders=2)["all"]
    assert (back.score, back.position_bias, back.first_minus_second) == (100.0, -1.0, -6.0)


def test_a_judge_that_looks_at_the_answers_has_no_bias():
    # The reference gets 8 and the candidate 4, wherever they stand.
    found = relative_scores(both_orders("a", "conv", (8, 4), (4, 8)), orders=2)["all"]
    assert (found.reference, found.candidate, found.score) == (8.0, 4.0, 50.0)
    assert (found.position_bias, found.first_minus_second) == (0.0, 0.0)


def test_positions_are_accounted_for_question_by_question():
    scored = both_orders("a", "conv", (9, 5), (7, 5))  # the first won twice: by 4 and by 2
    scored += both_orders("b", "conv", (9, 5), (5, 9))  # the reference won twice
    scored += both_orders("c", "conv", (6, 6), (7, 6))  # a draw and a win of the first: the place won only once
    scored += both_orders("d", "conv", (5, 6), (3, 9))  # the second won twice: by 1 and by 6
    found = relative_scores(scored, orders=2)["all"]
    assert (found.first_always, found.second_always, found.position_bias) == (0.25, 0.25, 0.0)
    assert found.first_minus_second == pytest.approx((4 + 2 + 4 - 4 + 0 + 1 - 1 - 6) / 8)
    # Reference: a (9+5)/2, b 9, c 6, d (5+9)/2; candidate: a (5+7)/2, b 5, c 6.5, d (6+3)/2.
    assert (found.reference, found.candidate) == (29 / 4, 22 / 4)
    assert found.score == pytest.approx(100 * 22 / 29)


def test_half_a_judgement_does_not_count():
    whole = both_orders("a", "conv", (8, 4), (4, 8))
    half = both_orders("b", "conv", (10, 1), (1, 10))[:1]
    found = relative_scores(whole + half, orders=2)
    assert (found["all"].score, found["all"].questions, found["all"].incomplete) == (50.0, 1, 1)
    assert relative_scores(half, orders=2) == {}
    # What was lost is counted once for a judgement: half of b, and all of c.
    lost = [("b", "conv", 0), ("c", "detail", 0), ("c", "detail", 0)]
    found = relative_scores(whole + half, orders=2, lost=lost)
    assert list(found) == ["conv", "all"]
    assert (found["conv"].incomplete, found["all"].incomplete, found["all"].score) == (1, 2, 50.0)
    # In another repeat the question is whole, and counts by that one.
    again = both_orders("b", "conv", (10, 10), (10, 10), repeat=1)
    found = relative_scores(whole + half + again, orders=2)["all"]
    assert (found.questions, found.judgements, found.incomplete) == (2, 2, 1)
    assert found.score == pytest.approx(100 * (4 + 10) / (8 + 10))


def test_repeats_are_averaged_within_a_question_and_told_apart():
    scored = [
        Scored("a", "conv", 0, "reference-first", 8, 4),
        Scored("a", "conv", 1, "reference-first", 8, 8),
        Scored("b", "conv", 0, "reference-first", 8, 8),
    ]
    found = relative_scores(scored, orders=1)["all"]
    # a: 8 and 6, b: 8 and 8.
    assert found.score == 87.5 and found.judgements == 3
    assert found.repeats == (75.0, 100.0)
    assert found.spread == pytest.approx(12.5 * 2**0.5)  # two values 25 apart


def test_the_interval_of_two_questions():
    # Four ways to draw two of two questions give 50, 75, 75 and 100: 50 and 100 hold the outer quarters.
    found = relative_scores(one_order(("a", "x", 8, 4), ("b", "x", 8, 8)), orders=1)["all"]
    assert (found.low, found.high) == (50.0, 100.0)
    pairs = question_means([[one] for one in one_order(("a", "x", 8, 4), ("b", "x", 8, 8))])
    assert interval(pairs, seed=0, level=0.4) == (75.0, 75.0)


def test_the_interval_is_fixed_by_the_seed_and_draws_questions():
    rows = [(str(n), "x", 8, 4 + n % 5) for n in range(40)]
    first, again, other = (relative_scores(one_order(*rows), orders=1, seed=seed)["all"] for seed in (3, 3, 4))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)
    # 40 questions of 50 to 100 with a standard deviation of 12.5 * sqrt(2): the mean's is that over sqrt(40), 2.80.
    assert first.score == 75.0
    assert first.low == pytest.approx(75 - 1.96 * 2.80, abs=0.4)
    assert first.high == pytest.approx(75 + 1.96 * 2.80, abs=0.4)
    # Many repeats of few questions do not make it narrower.
    few = [Scored(str(n), "x", repeat, "reference-first", 8, 4 + 4 * n) for n in range(2) for repeat in range(50)]
    found = relative_scores(few, orders=1)["all"]
    assert (found.low, found.high) == (50.0, 100.0)


def test_one_question_has_no_interval():
    found = relative_scores(one_order(("a", "x", 8, 4)), orders=1)["x"]
    assert (found.score, found.low, found.high) == (50.0, None, None)


def test_all_alike_have_an_interval_of_nothing():
    found = relative_scores(one_order(*((str(n), "x", 8, 6) for n in range(5000))), orders=1)["all"]
    assert (found.low, found.high) == (75.0, 75.0)


def test_questions_without_a_kind_count_for_all():
    assert list(relative_scores(one_order(("a", "", 8, 4), ("b", "x", 8, 4)), orders=1)) == ["x", "all"]
    assert relative_scores([], orders=1) == {}


def test_the_originals_arithmetic():
    tuples = [("conv", [8, 7]), ("conv", [9, 6.5]), ("detail", [-1, -1]), ("detail", [7, 3]), ("detail", [8, 8])]
    assert legacy_scores(tuples) == {
        # means 31 / 5 = 6.2 and 23.5 / 5 = 4.7; 75.806
        "all": {"questions": 5, "score": 75.8, "reference": 62.0, "candidate": 47.0},
        # 8.5 and 6.75; 79.41
        "conv": {"questions": 2, "score": 79.4, "reference": 85.0, "candidate": 67.5},
        # 14 / 3 and 10 / 3 with the pair of -1: 3.333 / 4.667 = 71.416, where the exact ratio is 71.43
        "detail": {"questions": 3, "score": 71.4, "reference": 46.7, "candidate": 33.3},
    }
    # Rounding the means first shows: 1.002 / 1.000 where the exact ratio is 100.12.
    assert legacy_scores([("", [1.0004, 1.0016])])["all"]["score"] == 100.2
    assert legacy_scores([("", [-1, -1])])["all"]["score"] == 100.0
    assert legacy_scores([("", [-1, -1]), ("", [1, 5])])["all"]["score"] is None
