"""The paper's filter of image-caption pairs: few captions of each frequent thing, all of the rare ones.

    index = PhraseIndex(extract_phrases(captions, "textblob", num_proc=2))
    chosen = balance(index, minimum=3, most=100, seed=0)        # a bool per caption

Phrases that fewer than `minimum` captions have are ignored. The others are walked from the rarest upward. A phrase
that at most `most` captions have brings all of them into the pool; of a more frequent one captions are drawn at random
until the pool has `most` with it, those counted that rarer phrases have brought already.

The paper's words leave open whether those count. Counting them is what makes the order of the walk matter, and gives
the smaller pool, which is nearer to the published 595 K. Which phrases there are depends on the extractor, so neither
the published numbers nor the very pairs can be had again.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context

import numpy as np

from .phrases import Extractor, make_extractor


CHUNK = 5000  # captions a worker takes at once
WINDOW = 4  # chunks per worker that are on their way: what a stream is read ahead

_extract: Extractor | None = None  # of a worker


def extract_phrases(captions: Iterable[str], extractor: str, num_proc: int = 1) -> Iterator[list[str]]:
    """The phrases of each caption, in order; captions are read as a stream."""
    chunks = _chunks(iter(captions))
    if num_proc == 1:
        extract = make_extractor(extractor)
        for chunk in chunks:
            yield from extract(chunk)
        return
    make_extractor(extractor)  # what is wrong with it is said here, not by a worker that breaks
    # Spawned, because a process with threads, as of pyarrow, must not be forked.
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker, (extractor,)) as pool:
        waiting: deque[Future[str]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_work, chunk))
                if len(waiting) >= WINDOW * num_proc:
                    yield from _unpack(waiting.popleft().result())
            while waiting:
                yield from _unpack(waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _chunks(captions: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(captions, CHUNK)):
        yield chunk


def _start_worker(extractor: str) -> None:
    global _extract
    _extract = make_extractor(extractor)


def _work(captions: list[str]) -> str:
    assert _extract is not None
    # One string is sent much faster than lists of lists of them. No phrase has a tab or a line break in it.
    return "\n".join("\t".join(phrases) for phrases in _extract(captions))


def _unpack(lines: str) -> Iterator[list[str]]:
    for line in lines.split("\n"):
        yield line.split("\t") if line else []


class PhraseIndex:
    """Which caption has which phrases, as arrays: about 4 bytes for each phrase of each caption."""

    def __init__(self, phrases_of_captions: Iterable[list[str]]):
        numbers: dict[str, int] = {}
        found, ends = array("i"), array("q", [0])
        for phrases in phrases_of_captions:
            found.extend([numbers.setdefault(phrase, len(numbers)) for phrase in dict.fromkeys(phrases)])
            ends.append(len(found))
        self.phrases = list(numbers)
        self.found = np.frombuffer(found, dtype=np.int32) if found else np.zeros(0, np.int32)
        self.ends = np.frombuffer(ends, dtype=np.int64)  # of caption k: found[ends[k] : ends[k + 1]]

    @property
    def num_captions(self) -> int:
        return len(self.ends) - 1

    def frequencies(self, captions: np.ndarray | None = None) -> np.ndarray:
        """How many captions have each phrase, of all or of those chosen."""
        found = self.found if captions is None else self.found[np.repeat(captions, np.diff(self.ends))]
        return np.bincount(found, minlength=len(self.phrases))


def balance(index: PhraseIndex, minimum: int = 3, most: int = 100, seed: int = 0) -> np.ndarray:
    """Which captions to keep."""
    frequencies = index.frequencies()
    # The captions of phrase p: captions[starts[p] : starts[p + 1]], ascending.
    of_phrase = np.argsort(index.found, kind="stable")
    captions = np.repeat(np.arange(index.num_captions, dtype=np.int32), np.diff(index.ends))[of_phrase]
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    # Equally frequent ones by their words: numbers depend on the order of the captions, words do not.
    kept = np.flatnonzero(frequencies >= minimum).tolist()
    order = sorted(kept, key=lambda phrase: (frequencies[phrase], index.phrases[phrase]))
    generator = np.random.default_rng(seed)
    chosen = np.zeros(index.num_captions, dtype=bool)
    for phrase in order:
        having = captions[starts[phrase] : starts[phrase + 1]]
        if len(having) > most:
            new = having[~chosen[having]]
            missing = max(0, most - (len(having) - len(new)))
            having = generator.choice(new, min(missing, len(new)), replace=False) if missing else new[:0]
        chosen[having] = True
    return chosen
