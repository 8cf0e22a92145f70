"""Scenes that differ from another in one fact: what a caption has to tell apart."""

import random
from collections.abc import Collection
from dataclasses import replace

from .scene import CELLS, COLOURS, SHAPES, SIZES, Scene, Thing, place, split_of


LOOKS: dict[str, Collection[str]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}


def variant(scene: Scene, rng: random.Random) -> Scene:
    """Another scene of the same split: one object of another colour, shape, size or cell, or two with their looks
    exchanged."""
    while True:
        things = list(scene.things)
        number = rng.randrange(len(things))
        fact = rng.choice(("colour", "shape", "size", "cell", "exchange"))
        if fact == "exchange":
            other = rng.randrange(len(things))
            name = rng.choice(list(LOOKS))
            values = getattr(things[number], name), getattr(things[other], name)
            things[number] = _changed(things[number], name, values[1])
            things[other] = _changed(things[other], name, values[0])
        elif fact == "cell":
            free = sorted(set(range(len(CELLS))) - {thing.cell for thing in things})
            things[number] = replace(things[number], cell=rng.choice(free))
        else:
            things[number] = _changed(things[number], fact, rng.choice(list(LOOKS[fact])))
        if tuple(things) != scene.things and split_of(_in_order(things)) == scene.split:
            break
    ordered = _in_order(things)
    return replace(scene, things=ordered, places=tuple(place(rng, thing) for thing in ordered))


def _in_order(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: thing.cell))


def _changed(thing: Thing, name: str, value: str) -> Thing:
    return replace(thing, **{name: value})  # type: ignore[arg-type]
