"""How fast to ask: requests and tokens a minute, how many at once, and when everybody waits.

All of it belongs to one event loop, and whoever came first goes first.
"""

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass


BURST = 0.25  # seconds of a rate that may be saved up: enough to make good a late wake-up, far from a minute's worth
LONGEST_PAUSE = 60.0  # seconds, where the server names none


@dataclass(frozen=True)
class Pace:
    """What a server takes. `rpm` and `tpm` are requests and tokens a minute, None without limit.

    `deadline` is for one attempt, all of it. `attempts` are for one request; being told to wait is none. `patience` is
    how long a server may keep everybody waiting before the run ends, to be taken up later.
    """

    concurrency: int = 64
    rpm: float | None = None
    tpm: float | None = None
    deadline: float = 300.0
    attempts: int = 8
    patience: float = 3600.0

    def __post_init__(self):
        for name in ("concurrency", "rpm", "tpm", "deadline", "attempts", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: {value}; wanted a number above 0")


class Bucket:
    """Fills at `per_minute` and is drawn on in order. Any 60 seconds see `per_minute` at most, but for one last draw
    larger than what is left: a draw waits for a full bucket at most, and leaves a debt that those behind it wait for.
    """

    def __init__(self, per_minute: float):
        self.size = max(1.0, per_minute / 60 * BURST)
        self.rate = max(per_minute / 2, per_minute - self.size + 1) / 60
        self._level = self.size
        self._at = time.monotonic()
        self._line = asyncio.Lock()  # first come, first served: a large draw is not starved by small ones

    def _fill(self) -> float:
        now = time.monotonic()
        self._level = min(self.size, self._level + (now - self._at) * self.rate)
        self._at = now
        return self._level

    async def take(self, amount: float) -> None:
        async with self._line:
            while (missing := min(amount, self.size) - self._fill()) > 1e-9:
                await asyncio.sleep(missing / self.rate)
            self._level -= amount

    def refund(self, amount: float) -> None:
        """What was drawn and not used; a negative amount is drawn on top."""
        self._level = min(self.size, self._level + amount)


class Slots:
    """How many may be in flight: one until the server has answered anything, then `most`; half when it asks for less,
    and one more for every round of answers after that.
    """

    def __init__(self, most: int):
        self.most = most
        self.limit = 1.0
        self.taken = 0
        self.is_probing = True
        self._line: deque[asyncio.Future] = deque()

    async def __aenter__(self) -> None:
        if self.taken < int(self.limit) and not self._line:
            self.taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was given and cannot be used
                self._free()
            raise

    async def __aexit__(self, *exception: object) -> None:
        self._free()

    def _free(self) -> None:
        self.taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._line and self.taken < int(self.limit):
            turn = self._line.popleft()
            if not turn.done():
                self.taken += 1
                turn.set_result(None)

    def open(self) -> None:
        """The server has answered, in whatever way: the key is good and there is somebody there."""
        if self.is_probing:
            self.is_probing, self.limit = False, float(self.most)
            self._let_in()

    def widen(self) -> None:
        if self.limit < self.most:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self._let_in()

    def narrow(self) -> None:
        self.limit = max(1.0, self.limit / 2)


class Pause:
    """Everybody waits until `until`. What was sent before the last pause began and is refused too belongs to the same
    event: it makes the pause no longer than the server says.
    """

    def __init__(self, shortest: float = 0.5):
        self.until = 0.0
        self.began = 0.0  # the last one
        self.since: float | None = None  # the first refusal after the last answer
        self._shortest = shortest
        self._in_a_row = 0

    def hit(self, sent_at: float, seconds: float | None) -> bool:
        """Refused, with the wait the server asks for if it does. True if this is a new event."""
        now = time.monotonic()
        is_new = sent_at >= self.began
        if self.since is None:
            self.since = now
        if is_new:
            self.began = now
            self._in_a_row += 1
        if seconds is None:
            seconds = 0.0
            if is_new:
                doubled = self._shortest * 2.0 ** min(20, self._in_a_row - 1)
                seconds = min(LONGEST_PAUSE, doubled) * random.uniform(0.75, 1.25)
        self.until = max(self.until, now + seconds)
        return is_new

    def answered(self, sent_at: float) -> None:
        if sent_at >= self.began:
            self._in_a_row, self.since = 0, None

    def left(self) -> float:
        return self.until - time.monotonic()

    def lasts(self) -> float:
        """Seconds since the first refusal that no answer has followed."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    async def over(self) -> None:
        """Returns after the pause, not everybody in the same instant."""
        while (left := self.left()) > 0:  # looked at again after the random part, in which another may have begun
            await asyncio.sleep(left + random.uniform(0, 0.1))
