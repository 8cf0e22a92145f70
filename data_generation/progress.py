"""One line about a run: how much is done, how fast, what it has cost, and when it ends."""

import sys
import time
from collections import deque

from tqdm import tqdm  # type: ignore[import-untyped]

from data_generation.asking import Asker
from data_generation.exchange import Reply


WINDOW = 60.0  # seconds that the rates look back


class Progress:
    """Counts, and shows them if `is_shown`. Whoever judges the replies adds to `rejected`."""

    def __init__(self, total: int | None, is_shown: bool, max_cost: float | None = None):
        self.done = self.cached = self.failed = self.rejected = 0
        self._max_cost = max_cost
        self._seen: deque[tuple[float, int, int]] = deque()  # time, requests, tokens
        # In a log a line stays, on a screen it is written over.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(total=total, disable=not is_shown, mininterval=interval, unit="req", dynamic_ncols=True)
        self._next = 0.0

    def count(self, reply: Reply, asker: Asker, cost: float | None) -> None:
        self.cached += reply.cached
        self.failed += bool(reply.error)
        self.done += not reply.cached and not reply.error
        if self._bar.disable:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.5
            self._seen.append((now, asker.answered, asker.answered_tokens))
            while self._seen[0][0] < now - WINDOW:
                self._seen.popleft()
            self._bar.set_postfix_str(self.line(cost), refresh=False)
        self._bar.update()

    def add(self) -> None:
        """One more is asked for than was known."""
        if self._bar.total is not None:
            self._bar.total += 1

    def line(self, cost: float | None) -> str:
        words = [f"done {self.done}", f"cached {self.cached}", f"failed {self.failed}", f"rejected {self.rejected}"]
        if len(self._seen) > 1:
            first, last = self._seen[0], self._seen[-1]
            minutes = (last[0] - first[0]) / 60
            words += [
                f"{(last[1] - first[1]) / minutes:,.0f} req/min",
                f"{(last[2] - first[2]) / minutes:,.0f} tok/min",
            ]
        if cost is not None:
            words.append(f"${cost:,.2f}" + (f"/${self._max_cost:,.2f}" if self._max_cost is not None else ""))
        return ", ".join(words)

    def close(self, cost: float | None) -> None:
        self._bar.set_postfix_str(self.line(cost), refresh=False)
        self._bar.close()
