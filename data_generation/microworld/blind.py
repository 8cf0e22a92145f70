"""What can be got right without looking: the best constant answer to each question.

constants = best_constant_answer(questions of training scenes)
blind_baseline(constants, questions of test scenes)            # {"colour": 0.19, ...}
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from .questions import Question


Constants = dict[tuple[str, str], str]


def best_constant_answer(questions: Iterable[Question]) -> Constants:
    """The most frequent key of each question's text; under the text "", that of the whole kind."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in questions:
        found[question.kind, question.text][question.key] += 1
        found[question.kind, ""][question.key] += 1
    return {which: keys.most_common(1)[0][0] for which, keys in found.items()}


def blind_baseline(constants: Constants, questions: Iterable[Question]) -> dict[str, float]:
    """The share of each kind that constant answers get right; ask about scenes that they were not taken from."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        key = constants.get((question.kind, question.text), constants[question.kind, ""])
        right[question.kind].append(key == question.key)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}
