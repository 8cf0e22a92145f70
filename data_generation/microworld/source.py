"""Scenes as annotated images, as COCO is read: each is drawn when its turn comes, and kept nowhere."""

import random
from collections.abc import Iterator

from ..rejections import Counts
from ..sources import AnnotatedImage
from .draw import boxes, png
from .scene import Scene, scenes
from .words import captions


SIDE = 64  # pixels; enough to see all there is


def read_microworld(
    counts: Counts, split: str = "train", count: int = 1000, seed: int = 0, side: int = SIDE
) -> Iterator[AnnotatedImage]:
    for scene in scenes(split, count, seed):
        counts.keep()
        yield annotated(scene, side)


def annotated(scene: Scene, side: int = SIDE) -> AnnotatedImage:
    return AnnotatedImage(scene.id, png(scene, side), captions_of(scene), boxes(scene), side, side)


def captions_of(scene: Scene) -> tuple[str, ...]:
    """The five captions of a scene, always the same."""
    return captions(scene.things, random.Random(f"captions {scene.id}"))
