"""Which images are written about, in which kinds, and by which of several processes: by hashes of ids alone.

So the choice depends neither on the order of the work nor on what else is chosen: of one seed, the images of a smaller
number are among those of a larger one, and the kinds share their images as far as their numbers go.
"""

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .parsing import Kind
from .prompting import Prompt
from .rejections import Rejected
from .sources import AnnotatedImage


@dataclass(frozen=True)
class Selection:
    """Of each kind in `last`, the images whose place is not behind it; of other kinds every image.

    Args:
        first: at most so many images of the source are looked at; None for all.
    """

    seed: int = 0
    last: Mapping[Kind, int] = field(default_factory=dict)
    first: int | None = None

    def takes(self, kind: Kind, image_id: str) -> bool:
        return kind not in self.last or place(image_id, self.seed) <= self.last[kind]


@dataclass(frozen=True)
class Part:
    """One of `total` processes that share the work. An image keeps its part when others come or go, so what was paid
    for it is found again.
    """

    number: int = 0
    total: int = 1

    def __post_init__(self):
        if not 0 <= self.number < self.total:
            raise ValueError(f"There is no shard {self.number} of {self.total}. Shards are numbered from 0.")

    def has(self, image_id: str) -> bool:
        return part_of(image_id, self.total) == self.number


def part_of(image_id: str, total: int) -> int:
    return _number(b"shard", image_id) % total


def place(image_id: str, seed: int) -> int:
    """Where an image stands in the order that the seed gives to all images there could be."""
    return _number(f"order {seed}".encode(), image_id)


def _number(salt: bytes, image_id: str) -> int:
    digest = hashlib.blake2b(image_id.encode(), digest_size=8, key=hashlib.blake2b(salt, digest_size=16).digest())
    return int.from_bytes(digest.digest(), "big")


def select(
    images: Iterable[AnnotatedImage], prompts: Mapping[Kind, Prompt], numbers: Mapping[Kind, int], seed: int
) -> Selection:
    """The first `numbers[kind]` images of the seed's order that have what the kind is written from.

    Reads `images` once and keeps one number for each image to be chosen.
    """
    heaps: dict[Kind, list[int]] = {kind: [] for kind in numbers}  # the largest place first, negated
    for image in images:
        here = -place(image.id, seed)
        for kind, heap in heaps.items():
            try:
                prompts[kind].context(image)
            except Rejected:  # counted where the tasks are made
                continue
            if len(heap) < numbers[kind]:
                heapq.heappush(heap, here)
            else:
                heapq.heappushpop(heap, here)
    found = {kind: len(heap) for kind, heap in heaps.items()}
    short = [f"{kind}: {found[kind]:,} of {number:,}" for kind, number in numbers.items() if found[kind] < number]
    if short:
        raise ValueError(f"The source has too few images for the numbers wanted ({'; '.join(short)}). Lower them.")
    return Selection(seed, {kind: -heap[0] for kind, heap in heaps.items()})
