"""Scenes: two to four objects on a grid of three by three cells, each decided by split, number and seed alone.

    scene = make_scene("test", 17)
    scene_of(scene.id) == scene

What a scene shows decides which split it may be in: every arrangement of objects belongs to one of `train`,
`validation` and `test` whatever the seed, so none is seen in two of them. Colours and shapes in `HELD_OUT` meet in no
scene of these three; each scene of `combinations` has at least one such object, and so has each of `told`, which are
other arrangements: language models read of them, as of most things, and nothing learns from a picture of them.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass


SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
# In reading order: cell 5 is in row 1, column 2.
CELLS = (
    *("top-left", "top", "top-right"),
    *("middle-left", "centre", "middle-right"),
    *("bottom-left", "bottom", "bottom-right"),
)
# One for each shape, of different colours, so that neither a shape nor a colour is rare in training.
HELD_OUT = frozenset(
    {("red", "triangle"), ("green", "ring"), ("blue", "circle"), ("yellow", "cross"), ("purple", "square")}
)
SPLITS = ("train", "validation", "test", "combinations", "told")
NUMBERS = (2, 3, 4)  # of objects
GROUNDS = ("night", "slate", "plum", "pine")

RADII = {"small": (0.072, 0.088), "large": (0.130, 0.148)}  # of a picture of side 1
MARGIN = 0.01  # kept free inside a cell
NUM_BUCKETS = 16  # of arrangements: one for validation, one for test, the others for train
ID = re.compile(rf"microworld-({'|'.join(SPLITS)})-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Thing:
    """What can be said of an object; `cell` is an index into `CELLS`."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object is drawn, in sides of the picture from its top left corner."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """`things` are in the order of their cells, `places` are theirs."""

    split: str
    index: int
    seed: int
    things: tuple[Thing, ...]
    places: tuple[Place, ...]
    ground: str

    @property
    def id(self) -> str:
        return f"microworld-{self.split}-{self.seed}-{self.index:06}"


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    if split not in SPLITS:
        raise ValueError(f"There is no split `{split}` of the micro world. Wanted one of {', '.join(SPLITS)}.")
    rng = random.Random(f"{split} {index} {seed}")
    number, variety = rng.choice(NUMBERS), rng.random()
    while True:
        things = _arrange(rng, number, variety)
        if split_of(things) == split:
            break
    places = tuple(place(rng, thing) for thing in things)
    return Scene(split, index, seed, things, places, rng.choice(GROUNDS))


def scenes(split: str, count: int, seed: int = 0) -> Iterator[Scene]:
    return (make_scene(split, index, seed) for index in range(count))


def scene_of(scene_id: str) -> Scene:
    """The scene again, from its id."""
    match = ID.fullmatch(scene_id)
    if match is None:
        raise ValueError(f"`{scene_id}` is no scene of the micro world. Ids are like `{make_scene('test', 0).id}`.")
    return make_scene(match[1], int(match[3]), int(match[2]))


def split_of(things: tuple[Thing, ...]) -> str:
    """The split whose scenes may show these objects."""
    shown = "; ".join(f"{thing.size} {thing.colour} {thing.shape} {thing.cell}" for thing in things)
    bucket = hashlib.blake2b(shown.encode(), digest_size=8).digest()[0] % NUM_BUCKETS
    if any(thing.pair in HELD_OUT for thing in things):
        return "combinations" if bucket < 2 else "told"
    return {0: "validation", 1: "test"}.get(bucket, "train")


def _arrange(rng: random.Random, number: int, variety: float) -> tuple[Thing, ...]:
    """All different in 43 % of scenes; else few shapes, few colours, or few of both, so that there is much to count
    and compare.
    """
    few_shapes, few_colours = variety >= 0.62, 0.43 <= variety < 0.62 or variety >= 0.81
    kinds = rng.sample(SHAPES, 2) if few_shapes else []
    palette = rng.sample(COLOURS, 3 if few_shapes else 2) if few_colours else []
    shapes = rng.choices(kinds, k=number) if kinds else rng.sample(SHAPES, number)
    colours = rng.choices(palette, k=number) if palette else rng.sample(COLOURS, number)
    cells = sorted(rng.sample(range(len(CELLS)), number))
    sizes = rng.choices(SIZES, k=number)
    return tuple(Thing(*facts) for facts in zip(shapes, colours, sizes, cells, strict=True))


def place(rng: random.Random, thing: Thing) -> Place:
    radius = rng.uniform(*RADII[thing.size])
    jitter = min(0.04, 1 / 6 - radius - MARGIN)
    x = (thing.column + 0.5) / 3 + rng.uniform(-jitter, jitter)
    y = (thing.row + 0.5) / 3 + rng.uniform(-jitter, jitter)
    return Place(x, y, radius)
