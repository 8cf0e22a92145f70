"""The paper's relative score: how far a candidate's answers come up to the reference answers, in percent.

    figures = relative_scores(scored, orders=2)       # {"conv": Figures, ..., "all": Figures}

A *judgement* is one question in one repeat: as many replies as there are orders, or it does not count. The two scores
of a question are their averages over its judgements, and the relative score is 100 times the mean of the candidate's
over the mean of the reference's, each question with the same weight. Pure arithmetic: nothing here asks or reads.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np


Order = Literal["reference-first", "candidate-first"]
ORDERS: tuple[Order, ...] = get_args(Order)
ALL = "all"  # the row of all kinds together
LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 2_000_000  # drawn numbers that are held at a time


@dataclass(frozen=True)
class Scored:
    """What one usable reply of the judge says. Without a `kind` it counts for ALL only."""

    question: str
    kind: str
    repeat: int
    order: Order
    reference: float
    candidate: float

    @property
    def first_minus_second(self) -> float:
        difference = self.reference - self.candidate
        return difference if self.order == "reference-first" else -difference


@dataclass(frozen=True)
class Figures:
    """Of one candidate, for one kind or for all.

    Args:
        questions: that have a judgement.
        judgements: complete ones.
        incomplete: judgements left out because a reply that they need cannot be used.
        reference, candidate: mean scores, from 1 to 10.
        score: the relative score.
        low, high: the bootstrap interval of `score`; None where there is one question only.
        repeats: the score of each repeat alone.
        spread: the standard deviation of `repeats`; None for one repeat.
        first_minus_second: by how many points the answer shown first is ahead, whoever gave it; None for one order.
        first_always, second_always: share of judgements in which the place won: whichever answer stood first (second)
            got the higher score, in both orders.
        position_bias: `first_always` minus `second_always`, from -1 to 1.
    """

    questions: int
    judgements: int
    incomplete: int
    reference: float
    candidate: float
    score: float
    low: float | None
    high: float | None
    repeats: tuple[float, ...]
    spread: float | None
    first_minus_second: float | None = None
    first_always: float | None = None
    second_always: float | None = None
    position_bias: float | None = None


Judgement = Sequence[Scored]


def relative_scores(
    scored: Iterable[Scored],
    orders: int,
    seed: int = 0,
    lost: Iterable[tuple[str, str, int]] = (),
) -> dict[str, Figures]:
    """The figures of one candidate by kind, in the order in which kinds come, and of all under ALL, at the end.

    Kinds without a complete judgement are left out.

    Args:
        orders: replies that make a judgement: 1, or 2 where both orders were asked for.
        lost: question, kind and repeat of each reply that cannot be used, for `incomplete`.
    """
    judgements: dict[tuple[str, str, int], list[Scored]] = defaultdict(list)
    for one in scored:
        judgements[one.question, one.kind, one.repeat].append(one)
    for key in lost:
        judgements[key]  # empty, unless there is a reply for the other order
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for (_, kind, _), judgement in judgements.items():
        if kind:
            groups[kind].append(judgement)
    groups[ALL] = list(judgements.values())
    found = {kind: _figures(group, orders, seed) for kind, group in groups.items()}
    return {kind: figures for kind, figures in found.items() if figures is not None}


def _figures(group: Sequence[Judgement], orders: int, seed: int) -> Figures | None:
    complete = [judgement for judgement in group if len({one.order for one in judgement}) == orders]
    if not complete:
        return None
    pairs = question_means(complete)
    reference, candidate = pairs.mean(axis=0).tolist()
    repeats = [
        ratio(question_means([judgement for judgement in complete if judgement[0].repeat == repeat]))
        for repeat in sorted({judgement[0].repeat for judgement in complete})
    ]
    low, high = interval(pairs, seed)
    return Figures(
        len(pairs),
        len(complete),
        len(group) - len(complete),
        reference,
        candidate,
        ratio(pairs),
        low,
        high,
        tuple(repeats),
        float(np.std(repeats, ddof=1)) if len(repeats) > 1 else None,
        **(position(complete) if orders == 2 else {}),
    )


def question_means(judgements: Sequence[Judgement]) -> np.ndarray:
    """(questions, 2): the reference's and the candidate's mean score on each question."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for judgement in judgements:
        pairs[judgement[0].question] += [(one.reference, one.candidate) for one in judgement]
    return np.array([np.mean(scores, axis=0) for scores in pairs.values()])


def ratio(pairs: np.ndarray) -> float:
    reference, candidate = pairs.mean(axis=0).tolist()
    return 100 * candidate / reference


def interval(pairs: np.ndarray, seed: int, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Percentiles of the score over questions drawn anew with replacement, as many as there are."""
    number = len(pairs)
    if number < 2:
        return None, None
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    step = max(1, CHUNK // number)
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(0, number, (min(step, RESAMPLES - start), number))  # (resamples, questions)
        reference, candidate = (scores.take(drawn).sum(axis=1) for scores in pairs.T)
        found.append(100 * candidate / reference)
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def position(complete: Sequence[Judgement]) -> dict[str, float]:
    """What the place decides where both orders were asked: the better answer stands once in either place, so how good
    the answers are cancels out."""
    ahead = [[one.first_minus_second for one in judgement] for judgement in complete]
    first = sum(min(pair) > 0 for pair in ahead) / len(ahead)
    second = sum(max(pair) < 0 for pair in ahead) / len(ahead)
    return {
        "first_minus_second": float(np.mean(ahead)),
        "first_always": first,
        "second_always": second,
        "position_bias": first - second,
    }


def legacy_scores(tuples: Iterable[tuple[str, Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """The arithmetic of the original's summary, for tables made with it.

    Every pair counts, that of a reply without scores, -1 and -1, too. Means are rounded to three decimals before they
    are divided, and the percentage to one. `reference` and `candidate` are ten times the means, to one decimal.

    Args:
        tuples: the category, empty where the file has none, and the pair: reference, then candidate.
    """
    groups: dict[str, list[Sequence[float]]] = defaultdict(list)
    for category, pair in tuples:
        for name in (category, ALL) if category else (ALL,):
            groups[name].append(pair)
    found = {}
    for name, pairs in sorted(groups.items()):
        reference, candidate = (round(mean, 3) for mean in np.asarray(pairs, dtype=float).mean(axis=0).tolist())
        found[name] = {
            "questions": len(pairs),
            "score": round(candidate / reference * 100, 1) if reference else None,
            "reference": round(reference * 10, 1),
            "candidate": round(candidate * 10, 1),
        }
    return found
