"""POPE: is the object in the picture? Yes is the positive class."""

import re
from collections.abc import Sequence

import numpy as np

from recipes.measuring.metrics.intervals import Estimate, bootstrap, share


ELSE = "yes"  # what POPE takes an answer for that says neither


def yes_or_no(text: str) -> str | None:
    """`no`, `yes`, or None where the answer says neither.

    Only what stands before the first full stop counts. It is `no` if one of its words is "no" or "not" or ends in
    "n't", in whatever case; else `yes` if one is "yes". POPE's own code knows neither None nor "n't": there
    everything that is not `no` is `yes`, and so None is scored as `ELSE`.
    """
    words = re.findall(r"[a-z']+", text.replace("’", "'").split(".")[0].lower())
    if any(word in ("no", "not") or word.endswith("n't") for word in words):
        return "no"
    return "yes" if "yes" in words else None


def outcomes(said: Sequence[str], labels: Sequence[str]) -> tuple[int, int, int, int]:
    """True positives, false positives, true negatives, false negatives."""
    pairs = list(zip(said, labels, strict=True))
    return tuple(pairs.count(pair) for pair in [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")])


def pope(tp: int, fp: int, tn: int, fn: int) -> dict[str, Estimate]:
    """accuracy = right / all; precision = TP / (TP + FP); recall = TP / (TP + FN); F1 = 2 TP / (2 TP + FP + FN);
    yes ratio = (TP + FP) / all. One whose denominator is 0 is not defined."""
    total = tp + fp + tn + fn
    return {
        "accuracy": share(tp + tn, total),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "f1": bootstrap([(tp, fp, tn, fn)], lambda counts: f1(counts[0])),
        "yes_ratio": share(tp + fp, total),
    }


def pope_mean(categories: Sequence[tuple[int, int, int, int]]) -> dict[str, Estimate]:
    """The means over categories, each with the same weight; that of F1 is what papers call the score of POPE."""

    def over(statistic):
        return bootstrap(categories, lambda counts: np.mean([statistic(one) for one in counts], axis=0))

    return {
        "accuracy": over(lambda c: (c[:, 0] + c[:, 2]) / c.sum(axis=1)),
        "precision": over(lambda c: c[:, 0] / (c[:, 0] + c[:, 1])),
        "recall": over(lambda c: c[:, 0] / (c[:, 0] + c[:, 3])),
        "f1": over(f1),
        "yes_ratio": over(lambda c: (c[:, 0] + c[:, 1]) / c.sum(axis=1)),
    }


def f1(counts: np.ndarray) -> np.ndarray:
    return 2 * counts[:, 0] / (2 * counts[:, 0] + counts[:, 1] + counts[:, 3])
