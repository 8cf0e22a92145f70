"""What can be asked of objects, kind by kind, before it has words: only what has one certain answer.

An object is named by its shape, its colour or both, and only where no other object has the same.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .scene import CELLS, COLOURS, HELD_OUT, SHAPES, Thing
from .words import NUMBERS, SIDES, joined, named, numbered, plural, sides


HARD = 3.0  # weight of a pair that is not there though its colour and its shape are


@dataclass(frozen=True, slots=True)
class Fact:
    """Something to be asked, before it has words. `group`: among what the choice is even, where not by the key."""

    slots: dict[str, str]
    key: str
    about: tuple[int, ...]
    group: str = ""
    weight: float = 1.0


def _colour(things: Sequence[Thing]) -> list[Fact]:
    return [
        Fact({"shape": thing.shape, "colour": thing.colour}, thing.colour, (i,))
        for i, thing in enumerate(things)
        if _is_only(things, "shape", thing.shape)
    ]


def _shape(things: Sequence[Thing]) -> list[Fact]:
    return [
        Fact({"shape": thing.shape, "colour": thing.colour}, thing.shape, (i,))
        for i, thing in enumerate(things)
        if _is_only(things, "colour", thing.colour)
    ]


def _size(things: Sequence[Thing]) -> list[Fact]:
    return [
        Fact({"pair": named(thing, False), "size": thing.size}, thing.size, (i,), thing.size)
        for i, thing in _singles(things)
    ]


def _where(things: Sequence[Thing]) -> list[Fact]:
    return [
        Fact({"pair": named(thing, False), "cell": CELLS[thing.cell]}, CELLS[thing.cell], (i,))
        for i, thing in _singles(things)
    ]


def _at(things: Sequence[Thing]) -> list[Fact]:
    return [
        Fact({"cell": CELLS[thing.cell], "thing": named(thing)}, named(thing), (i,)) for i, thing in enumerate(things)
    ]


def _exist(things: Sequence[Thing]) -> list[Fact]:
    pairs = {thing.pair for thing in things}
    found = []
    for colour in COLOURS:
        for shape in SHAPES:
            pair = (colour, shape)
            # In training nobody says such a pair either.
            if pair in HELD_OUT and not pairs & HELD_OUT:
                continue
            slots = {"pair": f"{colour} {shape}"}
            if pair in pairs:
                about = tuple(i for i, thing in enumerate(things) if thing.pair == pair)
                found.append(Fact(slots | {"yes": "yes", "a": "a", "does": "does"}, "yes", about, "yes"))
                continue
            about = tuple(i for i, thing in enumerate(things) if thing.colour == colour or thing.shape == shape)
            is_hard = any(thing.colour == colour for thing in things) and any(thing.shape == shape for thing in things)
            slots |= {"yes": "no", "a": "no", "does": "does not"}
            if about:
                found.append(Fact(slots, "no", about, "no", HARD if is_hard else 1.0))
    return found


def _count(things: Sequence[Thing]) -> list[Fact]:
    found = [_counted("object", "objects", tuple(range(len(things))))]
    for shape in SHAPES:
        found.append(
            _counted(shape, plural(shape), tuple(i for i, thing in enumerate(things) if thing.shape == shape))
        )
    for colour in COLOURS:
        about = tuple(i for i, thing in enumerate(things) if thing.colour == colour)
        found.append(_counted(f"{colour} object", f"{colour} objects", about))
    return found


def _counted(noun: str, nouns: str, about: tuple[int, ...]) -> Fact:
    number = NUMBERS[len(about)]
    said = noun if len(about) == 1 else nouns
    are = f"{'is' if len(about) == 1 else 'are'} {number if about else 'no'} {said}"
    slots = {"things": nouns, "number": number, "things_": said, "are": are}
    # "How many objects" has no answer but two, three and four: rarely, or it would decide them.
    return Fact(slots, number, about, number, 0.35 if noun == "object" else 1.0)


def _relation(things: Sequence[Thing]) -> list[Fact]:
    found = []
    for i, thing in _singles(things):
        for side in SIDES:
            there = [j for j, other in enumerate(things) if side in sides(other, thing)]
            if len(there) == 1:
                other = named(things[there[0]], False)
                found.append(Fact({"side": side, "pair": named(thing, False), "other": other}, other, (i, there[0])))
    return found


def _same(things: Sequence[Thing]) -> list[Fact]:
    only = [i for i, thing in enumerate(things) if _is_only(things, "shape", thing.shape)]
    found = []
    for i, j in ((i, j) for i in only for j in only if i != j):
        a, b = things[i], things[j]
        yes = "yes" if a.colour == b.colour else "no"
        slots = {"a": a.shape, "b": b.shape, "ca": a.colour, "cb": b.colour, "yes": yes}
        found.append(Fact(slots | {"is": "is" if yes == "yes" else "is not"}, yes, (i, j), yes))
    return found


def _remove(things: Sequence[Thing]) -> list[Fact]:
    found = []
    for colour in sorted({thing.colour for thing in things}):
        about = tuple(i for i, thing in enumerate(things) if thing.colour == colour)
        number, rest = len(about), len(things) - len(about)
        slots = {
            "colour": colour,
            "total": NUMBERS[len(things)],
            "number": NUMBERS[number],
            "is": "is" if number == 1 else "are",
            "rest": NUMBERS[rest],
            "remain": "remains" if rest == 1 else "remain",
            "are": "is" if rest == 1 else "are",
        }
        found.append(Fact(slots, NUMBERS[rest], about, NUMBERS[rest]))
    return found


def _more(things: Sequence[Thing]) -> list[Fact]:
    numbers = Counter(thing.shape for thing in things)
    found = []
    for a, b in ((a, b) for a in SHAPES for b in SHAPES if a != b and (numbers[a] or numbers[b])):
        first, second = numbers[a], numbers[b]
        key = "equal" if first == second else plural(a if first > second else b)
        slots = {
            "a": plural(a),
            "b": plural(b),
            "counts": f"{'is' if first == 1 else 'are'} {numbered(a, first)} and {numbered(b, second)}",
            "result": "they are equal" if key == "equal" else f"there are more {key}",
        }
        group = "equal" if key == "equal" else "first" if first > second else "second"
        about = tuple(i for i, thing in enumerate(things) if thing.shape in (a, b))
        # With one of them absent it is a question of what is there, which `exist` asks too.
        found.append(Fact(slots, key, about, group, 3.0 if first and second else 1.0))
    return found


def _move(things: Sequence[Thing]) -> list[Fact]:
    found = []
    for i, a in _singles(things):
        for j, b in _singles(things):
            if i == j:
                continue
            rows, columns = b.row - a.row, b.column - a.column
            up_or_down = "up" if rows < 0 else "down" if rows > 0 else ""
            across = "left" if columns < 0 else "right" if columns > 0 else ""
            way = " and ".join(filter(None, (up_or_down, across)))
            names = {"a": named(a, False), "b": named(b, False), "from": CELLS[a.cell], "to": CELLS[b.cell]}
            found.append(Fact(names | {"way": way}, way, (i, j)))
    return found


def _detail(things: Sequence[Thing]) -> list[Fact]:
    told = " ".join(f"At the {CELLS[thing.cell]} there is a {named(thing)}." for thing in things)
    return [Fact({"number": NUMBERS[len(things)], "all": told}, told, tuple(range(len(things))))]


def _brief(things: Sequence[Thing]) -> list[Fact]:
    listed = joined([f"a {named(thing, False)}" for thing in things])
    return [Fact({"list": listed}, listed, tuple(range(len(things))))]


def _is_only(things: Sequence[Thing], attribute: str, value: str) -> bool:
    return sum(getattr(thing, attribute) == value for thing in things) == 1


def _singles(things: Sequence[Thing]) -> list[tuple[int, Thing]]:
    """Objects that colour and shape together name."""
    numbers = Counter(thing.pair for thing in things)
    return [(i, thing) for i, thing in enumerate(things) if numbers[thing.pair] == 1]


FACTS: dict[str, Callable[[Sequence[Thing]], list[Fact]]] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "where": _where,
    "at": _at,
    "exist": _exist,
    "count": _count,
    "relation": _relation,
    "same": _same,
    "remove": _remove,
    "more": _more,
    "move": _move,
    "detail": _detail,
    "brief": _brief,
}
