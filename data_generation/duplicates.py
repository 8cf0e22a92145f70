"""Replies that say what an earlier one said: the same words exactly, or nearly (minhash over runs of five words).

    duplicates = Duplicates()
    duplicates.check(turns, row_id)      # Rejected for what is like an earlier row, else remembered

Check rows in a fixed order, not as answers arrive, or which of two alike is kept depends on the network. Memory is
bounded: exact hashes take 16 bytes for each row, and near ones are looked for among the last `capacity` rows.
"""

import hashlib
import re
import zlib
from collections import deque

import numpy as np

from .rejections import Rejected


WORD = re.compile(r"\w+")
SHINGLE = 5  # words
MIN_SHINGLES = 20  # shorter texts are alike by chance: "How many dogs are there? Two."
NUM_HASHES, NUM_BANDS = 64, 8  # two texts alike by 0.9 share a whole band in 99 of 100 cases
PRIME = np.uint64((1 << 31) - 1)  # products of two values below it fit into 64 bits


class Duplicates:
    """Remembers replies.

    Args:
        threshold: share of common shingles (Jaccard, estimated) from which two replies are alike; above 1 only exact
            ones count.
        capacity: how many of the last rows are compared with; about 2 kB each.
    """

    def __init__(self, threshold: float = 0.9, capacity: int = 100_000):
        if capacity < 1:
            raise ValueError(f"A capacity of {capacity} remembers nothing; wanted 1 or more.")
        self.threshold, self.capacity = threshold, capacity
        self.exact: dict[bytes, str] = {}
        self.recent: deque[tuple[str, np.ndarray]] = deque()  # (row id, signature); the first one is row `first`
        self.first = 0
        self.bands: dict[int, int] = {}  # hash of a band -> the last row that has it
        generator = np.random.default_rng(0)
        self.factors = generator.integers(1, int(PRIME), NUM_HASHES, dtype=np.uint64)
        self.offsets = generator.integers(0, int(PRIME), NUM_HASHES, dtype=np.uint64)

    def check(self, turns: list[tuple[str, str]], row_id: str) -> None:
        words = WORD.findall(" ".join(part for turn in turns for part in turn).lower())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in self.exact:
            raise Rejected("duplicate", f"the same words as in `{self.exact[digest]}`.")
        signature = self.sign(words) if self.threshold <= 1 else None
        if signature is not None:
            keys = _keys(signature)
            for row in sorted({self.bands[key] for key in keys if key in self.bands}):
                other, other_signature = self.recent[row - self.first]
                share = float(np.mean(other_signature == signature))
                if share >= self.threshold:
                    raise Rejected("near-duplicate", f"{share:.0%} of the wording of `{other}`.")
            self._remember(row_id, signature, keys)
        self.exact[digest] = row_id

    def sign(self, words: list[str]) -> np.ndarray | None:
        """The minhash of the words; None where there are too few to tell."""
        if len(words) - SHINGLE + 1 < MIN_SHINGLES:
            return None
        encoded = [word.encode() for word in words]
        runs = {zlib.crc32(b" ".join(encoded[k : k + SHINGLE])) for k in range(len(words) - SHINGLE + 1)}
        hashes = np.fromiter(runs, dtype=np.uint64, count=len(runs)) % PRIME
        # (shingles, hashes) -> the least of each hash
        return ((hashes[:, None] * self.factors + self.offsets) % PRIME).min(axis=0).astype(np.uint32)

    def _remember(self, row_id: str, signature: np.ndarray, keys: list[int]) -> None:
        if len(self.recent) == self.capacity:
            for key in _keys(self.recent.popleft()[1]):
                if self.bands.get(key) == self.first:
                    del self.bands[key]
            self.first += 1
        self.bands |= dict.fromkeys(keys, self.first + len(self.recent))
        self.recent.append((row_id, signature))


def _keys(signature: np.ndarray) -> list[int]:
    bands = np.split(signature, NUM_BANDS)
    return [number << 32 | zlib.crc32(band.tobytes()) for number, band in enumerate(bands)]
