"""What is said of a scene, in words of a closed vocabulary.

The five captions of a scene differ in what they tell, as those of five people do: one tells where everything is, with
all or some of its looks, another what the first left out; the others only number, name or relate some of it. All
facts are in the five together, and what a caption tells is in `teacher/reading.py` read back.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache

from ..prompting import load_questions
from .scene import CELLS, COLOURS, SHAPES, SIZES, Thing


NUMBERS = ("zero", "one", "two", "three", "four")
WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*|[^\sA-Za-z]")

OPENINGS = ("{}.", "There is {}.", "I see {}.", "The picture shows {}.")
COUNTS = (
    "{Number} objects on a dark ground.",
    "There are {number} objects in the picture.",
    "A simple picture of {number} objects.",
    "{Number} objects and nothing else.",
)
KINDS = ("{}.", "A picture of {}.", "{} on a dark ground.", "Just {}.")
RELATIONS = ("{A} is {side} {b}.", "There is {a} {side} {b}.", "{A}, {side} {b}.")
SIDES = ("to the left of", "to the right of", "above", "below")


def split_words(text: str) -> list[str]:
    """Words and marks, as a tokenizer of this vocabulary has them."""
    return WORD.findall(text)


def plural(shape: str, number: int = 2) -> str:
    return shape if number == 1 else f"{shape}es" if shape == "cross" else f"{shape}s"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def joined(parts: Sequence[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def numbered(shape: str, number: int) -> str:
    """no circles, one circle, two circles"""
    return f"{NUMBERS[number] if number else 'no'} {plural(shape, number)}"


def named(thing: Thing, with_size: bool = True) -> str:
    """small red circle"""
    return f"{thing.size} {thing.colour} {thing.shape}" if with_size else f"{thing.colour} {thing.shape}"


def sides(thing: Thing, other: Thing) -> list[str]:
    """On which sides of `other` it is, of `SIDES`."""
    found = (
        thing.column < other.column,
        thing.column > other.column,
        thing.row < other.row,
        thing.row > other.row,
    )
    return [side for side, is_there in zip(SIDES, found, strict=True) if is_there]


def captions(things: Sequence[Thing], rng: random.Random) -> tuple[str, ...]:
    number = len(things)
    rest = [
        rng.choice(COUNTS).format(number=NUMBERS[number], Number=capital(NUMBERS[number])),
        capital(rng.choice(KINDS).format(_kinds(things))),
        rng.choice((_relation, _relation, _some))(things, rng),
        capital(rng.choice(KINDS).format(_colours(things))),
    ]
    found = [*telling(things, rng), *rest][:5]
    rng.shuffle(found)
    return tuple(found)


def telling(things: Sequence[Thing], rng: random.Random) -> list[str]:
    """One or two captions that hold all facts."""
    return rng.choice((_everything, _looks_then_sizes, _sizes_then_colours))(things, rng)


def _everything(things: Sequence[Thing], rng: random.Random) -> list[str]:
    return [_list(things, lambda thing: named(thing), rng)]


def _looks_then_sizes(things: Sequence[Thing], rng: random.Random) -> list[str]:
    return [_list(things, lambda thing: named(thing, with_size=False), rng), _by_cell(things, "size", SIZES)]


def _sizes_then_colours(things: Sequence[Thing], rng: random.Random) -> list[str]:
    first = _list(things, lambda thing: f"{thing.size} {thing.shape}", rng)
    return [first, _by_cell(things, "colour", COLOURS)]


def _list(things: Sequence[Thing], name: Callable[[Thing], str], rng: random.Random) -> str:
    """Every object with its cell, in reading order or as they caught the eye."""
    order = list(things)
    if rng.random() < 0.4:
        rng.shuffle(order)
    if rng.random() < 0.6:
        return capital(
            rng.choice(OPENINGS).format(joined([f"a {name(thing)} at the {CELLS[thing.cell]}" for thing in order]))
        )
    first, *others = [f"a {name(thing)}" for thing in order]
    parts = [f"at the {CELLS[order[0].cell]} there is {first}"]
    parts += [f"at the {CELLS[thing.cell]} {other}" for thing, other in zip(order[1:], others, strict=True)]
    return capital(joined(parts)) + "."


def _by_cell(things: Sequence[Thing], attribute: str, values: Sequence[str]) -> str:
    """The objects at the top and the centre are large, the one at the bottom is small."""
    clauses: list[str] = []
    for value in values:
        cells = [f"the {CELLS[thing.cell]}" for thing in things if getattr(thing, attribute) == value]
        if len(cells) == len(things):
            return f"All of them are {value}."
        if cells:
            noun = "one" if clauses else "object"
            who = f"the {noun} at {cells[0]} is" if len(cells) == 1 else f"the {noun}s at {joined(cells)} are"
            clauses.append(f"{who} {value}")
    return capital(joined(clauses)) + "."


def _kinds(things: Sequence[Thing]) -> str:
    """two circles and a ring"""
    numbers = {thing.shape: sum(other.shape == thing.shape for other in things) for thing in things}
    return joined([f"a {shape}" if n == 1 else numbered(shape, n) for shape, n in numbers.items()])


def _colours(things: Sequence[Thing]) -> str:
    """two red objects and a blue one"""
    numbers = {thing.colour: sum(other.colour == thing.colour for other in things) for thing in things}
    parts: list[str] = []
    for colour, n in numbers.items():
        noun = ("one" if parts else "object") + ("" if n == 1 else "s")
        parts.append(f"{'a' if n == 1 else NUMBERS[n]} {colour} {noun}")
    return joined(parts)


def _relation(things: Sequence[Thing], rng: random.Random) -> str:
    one, other = rng.sample(list(things), 2)
    a, b = (f"a {named(thing, with_size=False)}" for thing in (one, other))
    return rng.choice(RELATIONS).format(a=a, A=capital(a), b=b, side=rng.choice(sides(one, other)))


def _some(things: Sequence[Thing], rng: random.Random) -> str:
    return capital(f"a {named(rng.choice(list(things)))} and {NUMBERS[len(things) - 1]} more.")


# What no list of names or numbers has.
LEXICON = """
    a above all and are as at below big colour compare count dark describe detail direction do does down else equal
    everything from get ground have how I if in is it just left many me more move no not nothing object objects of on
    ones or part picture remain remains removed right same see shape short show shows simple size so tell that the them
    there they thing to up what where which with yes you number , . ?
"""


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of captions, questions and answers, and of the questions that `llava generate` asks; with capitals
    where they can begin a sentence.
    """
    words = {*SHAPES, *map(plural, SHAPES), *COLOURS, *SIZES, *CELLS, *NUMBERS, *LEXICON.split()}
    words |= {capital(word) for word in words}
    for which in ("brief", "detailed"):
        words.update(word for question in load_questions(which) for word in split_words(question))
    return tuple(sorted(words))
