"""Questions about objects and their true answers: fourteen kinds, each in several wordings.

    question = ask(scene.things, "count", rng)        # None where there is nothing of the kind to be asked
    question.text, question.answer, question.key      # How many rings are there? There is one ring. one

An answer is decided by its question, wording included, so it can be compared word for word. Nothing is asked whose
answer is not certain: an object is named only by what no other shares. Answers are drawn first and then what has
them, so that none is much more frequent than others; `blind.py` measures what is left to guess.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .facts import FACTS, Fact
from .scene import Thing
from .wordings import WORDINGS
from .words import capital


SAME_LEFT_OUT = 0.8
# How often an answer is chosen where the objects allow it. The rare ones are wanted more.
GROUP_WEIGHTS = {
    "count": {"zero": 1.0, "one": 1.0, "two": 2.2, "three": 3.6, "four": 3.6},
    "remove": {"zero": 2.0, "one": 1.0, "two": 1.0, "three": 1.0},
    "same": {"yes": 1.6, "no": 1.0},
}


@dataclass(frozen=True, slots=True)
class Question:
    """`key` is the answer without its sentence; `about` are the objects that the question names or asks for."""

    kind: str
    text: str
    answer: str
    key: str
    about: tuple[int, ...]


def ask(
    things: Sequence[Thing], kind: str, rng: random.Random, about: int | None = None, wording: int | None = None
) -> Question | None:
    """A question of the kind; None where the objects allow none, or to keep its answers even.

    Args:
        about: an object that the question has to be about.
        wording: its number in `WORDINGS`; None for any.
    """
    facts = [fact for fact in FACTS[kind](things) if about is None or about in fact.about]
    groups = sorted({fact.group for fact in facts})
    if not groups:
        return None
    # What a scene without equal colours can only answer with no would drown the others.
    if kind == "same" and groups == ["no"] and rng.random() < SAME_LEFT_OUT:
        return None
    weights = GROUP_WEIGHTS.get(kind, {})
    group = rng.choices(groups, [weights.get(name, 1.0) for name in groups])[0]
    facts = [fact for fact in facts if fact.group == group]
    fact = rng.choices(facts, [fact.weight for fact in facts])[0]
    return _worded(kind, fact, rng.randrange(len(WORDINGS[kind])) if wording is None else wording)


def all_questions(things: Sequence[Thing]) -> list[Question]:
    """Everything that can be asked about the objects, in all wordings."""
    return [
        _worded(kind, fact, wording)
        for kind, facts in FACTS.items()
        for fact in facts(things)
        for wording in range(len(WORDINGS[kind]))
    ]


def _worded(kind: str, fact: Fact, wording: int) -> Question:
    text, answer = WORDINGS[kind][wording]
    slots = fact.slots | {capital(name): capital(words) for name, words in fact.slots.items()}
    return Question(kind, text.format(**slots), answer.format(**slots), fact.key, fact.about)
