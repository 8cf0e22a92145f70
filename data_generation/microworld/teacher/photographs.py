"""Modest turns about any picture, made of its captions' own sentences and of the number and place of its boxes."""

import random
from collections import Counter

from ...checks import LIMITS
from ...parsing import Kind, Turns
from ...sources import Box
from ..words import capital, joined
from .reading import Context
from .refusals import Unanswerable


WHOLE = ("What does the picture show?", "What can be seen here?", "What is going on in this picture?")
FURTHER = ("What else can you say about it?", "Can you tell me more?", "Is there anything to add?")
AGAIN = ("How would you put it in other words?", "What would somebody else say about it?", "And how else?")
WHY = (
    "Which sentence sums the picture up, and what speaks for it?",
    "What is this picture about, and how can one tell?",
    "What would you tell somebody who cannot see the picture, and why?",
)
AGREEING = (
    "That is what strikes one first, and what else can be seen goes well with it: {}",
    "Everything points to it. {}",
    "One can tell from what is there: {}",
)
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {"person": "people", "knife": "knives", "sheep": "sheep", "mouse": "mice", "bus": "buses"}


def write_about(kind: Kind, context: Context, rng: random.Random) -> Turns:
    sentences = _sentences(context)
    counts = _counted(context.boxes)
    if not sentences and not counts:
        raise Unanswerable(
            "The last message has neither captions nor boxes to write from. Put them there, one a line."
        )
    if kind == "detail":
        turns = [("", " ".join([*sentences, *_placed(context.boxes, counts)]))]
    elif kind == "reasoning":
        first, *others = sentences or [_said(counts)]
        rest = " ".join([*others, *_placed(context.boxes, counts)])
        turns = [(rng.choice(WHY), f"{first} {rng.choice(AGREEING).format(rest)}" if rest else first)]
    else:
        turns = _talk(sentences, counts, rng)
    return _long_enough(kind, turns)


def _long_enough(kind: Kind, turns: Turns) -> Turns:
    limits = LIMITS[kind]
    answer = turns[-1][1]
    if len(answer) < limits.answer[0]:
        raise Unanswerable(
            f"There is too little to write a {kind} of: {answer[:80]!r}, {len(answer)} characters where "
            f"{limits.answer[0]} are wanted. Send more captions, or boxes."
        )
    return turns


def _talk(sentences: list[str], counts: Counter[str], rng: random.Random) -> Turns:
    turns: Turns = []
    asked = [rng.choice(WHOLE), rng.choice(FURTHER), *rng.sample(AGAIN, len(AGAIN))]
    for question, sentence in zip(asked[:4], sentences, strict=False):
        turns.append((question, sentence))
    for label, number in list(counts.items())[: 5 - min(len(turns), 3)]:
        answer = f"There {'is' if number == 1 else 'are'} {_numbered(label, number)}."
        turns.append((f"How many {_plural(label)} can you see?", answer))
    return turns


def _sentences(context: Context) -> list[str]:
    """The captions, each once, the longest first; as sentences."""
    found: dict[str, str] = {}
    for caption in context.captions:
        sentence = capital(caption if caption.endswith((".", "!", "?")) else f"{caption}.")
        found.setdefault(sentence.lower(), sentence)
    return sorted(found.values(), key=lambda sentence: -len(sentence))


def _counted(boxes: tuple[Box, ...]) -> Counter[str]:
    return Counter(box.label for box in boxes)


def _placed(boxes: tuple[Box, ...], counts: Counter[str]) -> list[str]:
    """A sentence on each label: how many there are, and where if there is one."""
    found = []
    for label, number in counts.items():
        where = ""
        if number == 1:
            box = next(box for box in boxes if box.label == label)
            middle = (box.x1 + box.x2) / 2
            where = " on the left" if middle < 0.4 else " on the right" if middle > 0.6 else " in the middle"
        found.append(f"There {'is' if number == 1 else 'are'} {_numbered(label, number)}{where}.")
    return found


def _said(counts: Counter[str]) -> str:
    return f"The picture shows {joined([_numbered(label, number) for label, number in counts.items()])}."


def _numbered(label: str, number: int) -> str:
    word = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else "many"
    return f"{word} {label if number == 1 else _plural(label)}"


def _plural(label: str) -> str:
    if label in IRREGULAR:
        return IRREGULAR[label]
    if label.endswith(("s", "x", "ch", "sh")):
        return f"{label}es"
    return f"{label[:-1]}ies" if label.endswith("y") and label[-2:-1] not in "aeiou" else f"{label}s"
