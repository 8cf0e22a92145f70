"""What a request tells of a picture: captions and boxes, and the objects of the micro world that they describe."""

import re
from dataclasses import dataclass

from ...sources import Box
from ..scene import CELLS, COLOURS, SHAPES, SIZES, Thing
from ..words import LEXICON, NUMBERS, plural, split_words
from .refusals import Unanswerable


BOX = re.compile(r"([^\[\]\n]+): \[([\d.]+), ([\d.]+), ([\d.]+), ([\d.]+)\]")
SMALL = 0.2  # a box of the micro world that is not higher is that of a small object

_CELL, _SHAPE, _COLOUR, _SIZE = ("|".join(names) for names in (CELLS, SHAPES, COLOURS, SIZES))
LOOKS = rf"an? (?:({_SIZE}) )?(?:({_COLOUR}) )?({_SHAPE})"
# Names of cells begin with names of others, so a name has to end.
NAMED_THEN_PLACED = re.compile(rf"{LOOKS} at the ({_CELL})(?![\w-])")
PLACED_THEN_NAMED = re.compile(rf"at the ({_CELL}) (?:there is )?{LOOKS}\b")
CELL = re.compile(rf"the ({_CELL})(?![\w-])")
# The objects at the top and the centre are small
GROUPED = re.compile(
    rf"the (?:objects?|ones?) at (the (?:{_CELL})(?:(?:, | and )the (?:{_CELL}))*) (?:is|are) ({_COLOUR}|{_SIZE})\b"
)
ALL_ALIKE = re.compile(rf"all of them are ({_COLOUR}|{_SIZE})\b")
NUMBER = re.compile(rf"\b({'|'.join(NUMBERS)}) objects\b")

MICRO_WORDS = {*SHAPES, *map(plural, SHAPES), *COLOURS, *SIZES, *CELLS, *NUMBERS} | set(LEXICON.lower().split())


@dataclass(frozen=True)
class Context:
    captions: tuple[str, ...]
    boxes: tuple[Box, ...]


def read_context(text: str) -> Context:
    """Lines are captions, or boxes such as `cup: [0.1, 0.2, 0.3, 0.4]`."""
    captions, boxes = [], []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = BOX.fullmatch(line)
        if match is None:
            captions.append(line)
            continue
        try:
            numbers = [float(number) for number in match.groups()[1:]]
        except ValueError as error:
            raise Unanswerable(f"The box {line[:80]!r} has a number that cannot be read: {error}.") from error
        boxes.append(Box(match[1].strip(), *numbers))
    return Context(tuple(captions), tuple(boxes))


def read_things(context: Context) -> tuple[Thing, ...] | None:
    """The objects in the order of their cells; None where this is not the micro world, or not all is told."""
    lines = [caption.lower() for caption in context.captions]
    if not lines or not all(word.lower() in MICRO_WORDS for line in lines for word in split_words(line)):
        return None
    told: dict[int, dict[str, str]] = {}
    for line in lines:
        _read_line(line, told)
    for box in context.boxes:
        if box.label in SHAPES:
            column, row = (min(2, int((low + high) / 2 * 3)) for low, high in ((box.x1, box.x2), (box.y1, box.y2)))
            size = SIZES[box.y2 - box.y1 > SMALL]
            _tell(told, CELLS[3 * row + column], shape=box.label, size=size)
    for line in lines:
        if match := ALL_ALIKE.search(line):
            for cell in told:
                _tell(told, CELLS[cell], **_attribute(match[1]))
    numbers = {NUMBERS.index(match[1]) for line in lines if (match := NUMBER.search(line))}
    if numbers - {len(told)} and told:
        raise Unanswerable(f"The captions tell of {sorted(numbers)} objects, and where {len(told)} of them are.")
    if not told or not all({"shape", "colour", "size"} <= looks.keys() for looks in told.values()):
        return None
    return tuple(Thing(cell=cell, **told[cell]) for cell in sorted(told))


def _read_line(line: str, told: dict[int, dict[str, str]]) -> None:
    if line.startswith(("at the", "there is at the")):
        found = [(cell, looks) for cell, *looks in PLACED_THEN_NAMED.findall(line)]
    else:
        found = [(cell, looks) for *looks, cell in NAMED_THEN_PLACED.findall(line)]
    for cell, (size, colour, shape) in found:
        _tell(told, cell, size=size, colour=colour, shape=shape)
    for cells, value in GROUPED.findall(line):
        for cell in CELL.findall(cells):
            _tell(told, cell, **_attribute(value))


def _attribute(value: str) -> dict[str, str]:
    return {"size" if value in SIZES else "colour": value}


def _tell(told: dict[int, dict[str, str]], cell: str, **looks: str) -> None:
    known = told.setdefault(CELLS.index(cell), {})
    for attribute, value in looks.items():
        if value and known.setdefault(attribute, value) != value:
            raise Unanswerable(
                f"The {attribute} of the object at the {cell} is told as {known[attribute]} and as {value}. "
                "Send captions and boxes of one picture."
            )
