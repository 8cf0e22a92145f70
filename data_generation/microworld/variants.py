"""Scenes to learn to see from: with few objects at first, and others that differ in one fact."""

import random
from collections.abc import Collection
from dataclasses import replace

from .scene import CELLS, COLOURS, SHAPES, SIZES, Scene, Thing, make_scene, place, split_of


LOOKS: dict[str, Collection[str]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}


def draw_few(rng: random.Random, most: int) -> Scene:
    """A scene of `train`, any `most` of its objects at most: one alone is what `make_scene` never shows."""
    while True:
        scene = make_scene("train", rng.randrange(2**31))
        number = min(most, len(scene.things))
        chosen = sorted(rng.sample(range(len(scene.things)), number))
        things = tuple(scene.things[i] for i in chosen)
        if split_of(things) == scene.split:
            return replace(scene, things=things, places=tuple(scene.places[i] for i in chosen))


def variant(scene: Scene, rng: random.Random) -> Scene:
    """Another scene: one object of another colour, shape, size or cell, or two with their looks exchanged.

    One of `train` is of `train`. Scenes of other splits may have no neighbour of their own; what they have shows
    held-out combinations if they do.
    """
    known, new = {"train", "validation", "test"}, {"combinations", "told"}
    splits = {"train"} if scene.split == "train" else new if scene.split in new else known
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
        ordered = _in_order(things)
        if ordered != scene.things and (split := split_of(ordered)) in splits:
            return replace(scene, split=split, things=ordered, places=tuple(place(rng, thing) for thing in ordered))


def _in_order(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: thing.cell))


def _changed(thing: Thing, name: str, value: str) -> Thing:
    return replace(thing, **{name: value})  # type: ignore[arg-type]
