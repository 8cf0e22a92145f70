"""Faults to try a client with: each request for a completion may meet one, by chances and a seed.

They depend on how many requests came before and not on the request, so that asking again helps.
"""

import random
from dataclasses import dataclass, fields
from typing import Literal


Fault = Literal["throttled", "failed", "slow", "cut", "dropped"]


@dataclass(frozen=True)
class Chances:
    """From 0 to 1 each, together at most 1.

    Args:
        throttled: 429 with Retry-After.
        failed: 500.
        slow: the answer after a wait.
        cut: half of the answer's bytes, then the connection ends.
        dropped: the connection ends without an answer.
    """

    throttled: float = 0.0
    failed: float = 0.0
    slow: float = 0.0
    cut: float = 0.0
    dropped: float = 0.0

    def __post_init__(self):
        chances = {field.name: getattr(self, field.name) for field in fields(self)}
        if min(chances.values()) < 0 or sum(chances.values()) > 1:
            raise ValueError(f"The chances of faults are {chances}. Wanted are numbers from 0, together at most 1.")


class Faults:
    def __init__(self, chances: Chances, seed: int = 0):
        self.chances = chances
        self.met: dict[str, int] = {}
        self._rng = random.Random(f"faults {seed}")

    def next(self) -> Fault | None:
        """What the next request meets."""
        draw = self._rng.random()
        names: tuple[Fault, ...] = ("throttled", "failed", "slow", "cut", "dropped")
        for name in names:
            draw -= getattr(self.chances, name)
            if draw < 0:
                self.met[name] = self.met.get(name, 0) + 1
                return name
        return None
