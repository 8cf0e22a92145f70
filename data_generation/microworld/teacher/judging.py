"""Two answers to a question about a picture, scored from 1 to 10 by what the context says.

The last message has four parts, each under its heading on a line of its own: `[Context]`, `[Question]`,
`[Assistant 1]`, `[Assistant 2]`. The first line of the reply has the two scores, then comes the reason.
"""

import re
from collections import Counter
from collections.abc import Sequence

from ..questions import Question, all_questions
from ..scene import CELLS, COLOURS, SHAPES, SIZES, Thing
from ..words import NUMBERS, plural, split_words
from .reading import read_context, read_things
from .refusals import Unanswerable


HEADING = re.compile(
    r"[#*\[ ]*(end of )?(context|question|(?:assistant|answer)(?: [a-z]+)? ?[12ab]|system|task)[\]*: ]*", re.IGNORECASE
)
Claim = frozenset[str]
PART_END = re.compile(r"[.,;:!?]|\band\b|\bso\b|\bbut\b")
TELLING = {*SHAPES, *COLOURS, *SIZES, *CELLS, *NUMBERS, "up", "down", "left", "right", "yes", "no", "above", "below"}
TELLING |= {"more", "equal"}
SINGULAR = {plural(shape): shape for shape in SHAPES} | {"no": "no", "zero": "no"}
EMPTY = {"a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "have", "in", "is", "it", "of", "on", "or"}
EMPTY |= {"that", "the", "their", "there", "this", "to", "with"}


def parts_of(text: str) -> dict[str, str] | None:
    """context, question, 1 and 2; None where the text has not two answers."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := HEADING.fullmatch(line.strip()):
            word = match[2].lower()
            last = {"a": "1", "b": "2"}.get(word[-1], word[-1])
            name = "" if match[1] else word if word in ("context", "question", "system", "task") else last
            continue
        found.setdefault(name, []).append(line)
    parts = {name: "\n".join(lines).strip() for name, lines in found.items()}
    return parts if {"1", "2"} <= parts.keys() else None


def judge(parts: dict[str, str]) -> str:
    missing = [name for name in ("context", "question") if not parts.get(name)]
    if missing:
        names = " and ".join(f"[{name.capitalize()}]" for name in missing)
        raise Unanswerable(
            f"Two answers are to be judged, but {names} is missing or empty."
            " Wanted are [Context], [Question], [Assistant 1] and [Assistant 2], each on a line of its own."
        )
    context = read_context(parts["context"])
    things = read_things(context)
    asked = _normal(parts["question"])
    truth = next((q for q in all_questions(things) if _normal(q.text) == asked), None) if things else None
    words = " ".join([*context.captions, *(box.label for box in context.boxes)])
    scored = []
    for number in ("1", "2"):
        if not parts[number]:
            scored.append((1, "says nothing"))
        elif things and truth:
            scored.append(_against_truth(parts[number], truth))
        elif things:
            scored.append(_against_things(parts[number], things))
        else:
            scored.append(_against_words(parts[number], words))
    (first, why_first), (second, why_second) = scored
    verdict = "Both are as good." if first == second else f"Assistant {1 if first > second else 2} is better."
    return f"{first} {second}\nAssistant 1 {why_first}. Assistant 2 {why_second}. {verdict}"


def _against_truth(answer: str, truth: Question) -> tuple[int, str]:
    if _normal(answer) == _normal(truth.answer):
        return 10, "is right in every word"
    right, said, asked = _claims(truth.answer), _claims(answer), set(_telling(truth.text))
    if said == right:
        return 9, "says what is true, in other words"
    wrong = [claim for claim in said if not _is_backed(claim, right, asked)]
    if not wrong and set(_telling(truth.key)) <= set().union(*said):
        return 8, f"has the answer, {truth.key[:80]}"
    share = _overlap(right, said) if wrong else _overlap(_telling(truth.answer), _telling(answer))
    claims = " and ".join(f"`{' '.join(sorted(claim))}`" for claim in wrong[:2])
    why = f"says {claims}, where" if wrong else "leaves out the answer:"
    return 1 + round(5 * share), f"{why} the picture has: {truth.answer[:160].rstrip('.')}"


def _against_things(answer: str, things: Sequence[Thing]) -> tuple[int, str]:
    """An answer to a question nobody foresaw: by what it claims of objects."""
    looks = [frozenset((thing.shape, thing.colour, thing.size, CELLS[thing.cell])) for thing in things]
    backing = [*looks, frozenset((NUMBERS[len(things)],))]
    said = _claims(answer)
    backed = sum(any(claim <= true for true in backing) for claim in said.elements())
    share = backed / max(1, said.total())
    return 1 + round(9 * share), f"is borne out by the picture in {backed} of {said.total()} points"


def _against_words(answer: str, context: str) -> tuple[int, str]:
    known, said = set(_content(context)), set(_content(answer))
    agreed = len(known & said)
    enough = min(1.0, agreed / 6)  # a single right word is no good answer
    share = agreed / max(1, len(said)) * (0.5 + 0.5 * enough)
    return 1 + round(9 * share), f"has {agreed} of its {len(said)} words from the picture"


def _is_backed(claim: Claim, right: Counter[Claim], asked: set[str]) -> bool:
    """Whether it is part of something true. Words of the question may come again where the truth has none of them."""
    if any(claim <= true for true in right):
        return True
    repeated = claim & asked
    return not any(repeated & true for true in right) and any(claim - asked <= true for true in right)


def _claims(text: str) -> Counter[Claim]:
    """What is said together: the telling words of each part of a sentence."""
    parts = (frozenset(_telling(part)) for part in PART_END.split(text.lower()))
    return Counter(part for part in parts if part)


def _overlap(true: Counter, said: Counter) -> float:
    """F1 of what is said."""
    return 2 * (true & said).total() / max(1, true.total() + said.total())


def _telling(text: str) -> Counter[str]:
    words = (SINGULAR.get(word, word) for word in split_words(text.lower()))
    return Counter(word for word in words if word in TELLING)


def _content(text: str) -> list[str]:
    return [word for word in split_words(text.lower()) if word[0].isalpha() and word not in EMPTY]


def _normal(text: str) -> str:
    # What was typed before and after the question, `<image>` above all, is not part of it.
    return " ".join(split_words(text.replace("<image>", " ").lower()))
