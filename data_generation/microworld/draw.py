"""Pictures of scenes at any resolution, and the exact boxes of what is in them.

Every outline is a signed distance, negative inside, so an edge is as smooth at 48 pixels as at 1,024.
"""

from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

from ..sources import Box
from .scene import Place, Scene, Thing


PALETTE = {
    "red": (229, 62, 62),
    "green": (64, 186, 96),
    "blue": (66, 118, 240),
    "yellow": (247, 206, 62),
    "purple": (172, 84, 218),
    "white": (243, 243, 246),
}
# The middle of the ground; it darkens towards the corners. All are far darker than any object.
GROUNDS = {"night": (28, 32, 46), "slate": (34, 37, 41), "plum": (40, 29, 43), "pine": (24, 38, 37)}

ROUNDING = 0.10  # of corners, in radii
SQUARE = 0.86  # half a side, in radii: a square of the circle's area
ARM = 0.34  # half an arm of a cross
HOLE = 0.55  # of a ring
TRIANGLE = np.array([(0.0, -0.92), (0.96, 0.82), (-0.96, 0.82)])  # tips, before rounding cuts them
SHADE = 0.10  # lighter above and darker below by this share
SHADOW, SHADOW_DROP, SHADOW_WIDTH = 0.5, 0.14, 0.30  # depth; offset and softness in radii

Field = np.ndarray  # (height, width) distances


def draw(scene: Scene, side: int) -> Image.Image:
    """A picture of side x side pixels."""
    ticks = (np.arange(side, dtype=np.float32) + 0.5) / side
    pixels = _ground(scene.ground, ticks)  # (side, side, 3), 0 to 255
    for thing, place in zip(scene.things, scene.places, strict=True):
        reach = place.radius * (1 + SHADOW_DROP + 2 * SHADOW_WIDTH) + 1 / side
        across, down = _window(place.x, reach, side), _window(place.y, reach, side)
        x = ((ticks[across] - place.x) / place.radius)[None, :]  # in radii from the object's middle
        y = ((ticks[down] - place.y) / place.radius)[:, None]
        patch = pixels[down, across]
        shadow = np.clip(0.5 - outline(thing.shape, x, y - SHADOW_DROP) / SHADOW_WIDTH / 2, 0, 1)
        patch *= 1 - SHADOW * (shadow * shadow)[..., None]
        covered = np.clip(0.5 - outline(thing.shape, x, y) * place.radius * side, 0, 1)[..., None]
        colour = np.array(PALETTE[thing.colour], np.float32) * (1 - SHADE * np.clip(y, -1, 1)[..., None])
        patch += covered * (np.minimum(colour, 255) - patch)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def png(scene: Scene, side: int) -> bytes:
    file = BytesIO()
    draw(scene, side).save(file, "PNG", compress_level=3)  # a third of the time of the usual 6, a tenth larger
    return file.getvalue()


def boxes(scene: Scene) -> tuple[Box, ...]:
    """In the order of the things. The label is the shape, as a detector of shapes would give it."""
    return tuple(_box(thing, place) for thing, place in zip(scene.things, scene.places, strict=True))


def outline(shape: str, x: Field, y: Field) -> Field:
    """The distance from the edge of a shape of radius 1."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - (1 + HOLE) / 2) - (1 - HOLE) / 2
    if shape == "square":
        return _rectangle(x, y, SQUARE, SQUARE)
    if shape == "cross":
        return np.minimum(_rectangle(x, y, 1, ARM), _rectangle(x, y, ARM, 1))
    return _polygon(x, y, _inner_triangle()) - ROUNDING


def _box(thing: Thing, place: Place) -> Box:
    left, top, right, bottom = -1.0, -1.0, 1.0, 1.0
    if thing.shape == "square":
        left, top, right, bottom = -SQUARE, -SQUARE, SQUARE, SQUARE
    elif thing.shape == "triangle":
        left, top = (_inner_triangle().min(axis=0) - ROUNDING).tolist()
        right, bottom = (_inner_triangle().max(axis=0) + ROUNDING).tolist()
    r = place.radius
    return Box(thing.shape, place.x + left * r, place.y + top * r, place.x + right * r, place.y + bottom * r)


def _ground(name: str, ticks: np.ndarray) -> np.ndarray:
    distance = np.hypot(ticks[None, :] - 0.5, ticks[:, None] - 0.42)
    return np.array(GROUNDS[name], np.float32) * (1.08 - 0.75 * distance**1.5)[..., None].astype(np.float32)


def _window(middle: float, reach: float, side: int) -> slice:
    return slice(max(0, int((middle - reach) * side)), min(side, int((middle + reach) * side) + 2))


def _rectangle(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    beyond_x, beyond_y = np.abs(x) - half_width + ROUNDING, np.abs(y) - half_height + ROUNDING
    outside = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_y, 0))
    return outside + np.minimum(np.maximum(beyond_x, beyond_y), 0) - ROUNDING


def _polygon(x: Field, y: Field, corners: np.ndarray) -> Field:
    """Of a convex polygon whose corners go clockwise on the screen."""
    nearest, inside = np.inf, -np.inf
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge_x, edge_y = (end - start).tolist()
        to_x, to_y = x - start[0], y - start[1]
        along = np.clip((to_x * edge_x + to_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(to_x - along * edge_x, to_y - along * edge_y))
        inside = np.maximum(inside, to_x * edge_y - to_y * edge_x)
    return np.where(inside < 0, -nearest, nearest)


@cache
def _inner_triangle() -> np.ndarray:
    """`TRIANGLE` with each edge moved in by `ROUNDING`: shrunk towards the middle of its incircle."""
    lengths = np.linalg.norm(np.roll(TRIANGLE, -1, axis=0) - np.roll(TRIANGLE, -2, axis=0), axis=1)
    middle = (TRIANGLE * lengths[:, None]).sum(axis=0) / lengths.sum()
    base, height = TRIANGLE[1, 0] - TRIANGLE[2, 0], TRIANGLE[1, 1] - TRIANGLE[0, 1]
    inradius = base * height / lengths.sum()
    return middle + (TRIANGLE - middle) * (1 - ROUNDING / inradius)
