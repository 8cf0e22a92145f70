"""What may be spent. The worst a request can cost is set aside before it is sent, so that no cap is ever passed."""

import asyncio
import math
from dataclasses import dataclass, replace

from data_generation.exchange import Usage
from data_generation.ledger import Ledger, Spent


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens, from the provider's page. Without a price of their own, cached and written input
    cost what input costs."""

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None

    def __post_init__(self):
        for name, value in self.__dict__.items():
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"price of {name}: {value}; wanted dollars for a million tokens, 0 or more")

    def cost(self, usage: Usage) -> float:
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        plain = max(0, usage.input - usage.cached - usage.written)
        dollars = plain * self.input + usage.cached * cached + usage.written * written + usage.output * self.output
        return dollars / 1e6

    def worst(self, usage: Usage) -> float:
        """At the dearest way to read the input."""
        return max(self.cost(replace(usage, cached=0, written=part)) for part in (0, usage.input))

    def times(self, factor: float) -> "Prices":
        """These prices at a discount, as 0.5 for batches."""
        cached, written = (
            None if price is None else price * factor for price in (self.cached_input, self.cache_write)
        )
        return Prices(self.input * factor, self.output * factor, cached, written)


@dataclass(frozen=True)
class Caps:
    """For all runs on one ledger together. A request counts once it was or may have been billed."""

    max_cost: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    prices: Prices | None = None

    def __post_init__(self):
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                "max_cost needs prices: give dollars per million input and output tokens, or cap requests or tokens"
            )
        for name in ("max_cost", "max_requests", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: {value}; wanted 0 or more")

    @property
    def need_worst_case(self) -> bool:
        return self.max_cost is not None or self.max_tokens is not None

    def cost(self, spent: Spent) -> float:
        """Dollars at most: what may have been billed included, and what had no price yet at today's."""
        unpriced = Usage(spent.unpriced_input, spent.unpriced_output)
        return spent.cost + spent.maybe_cost + (self.prices.worst(unpriced) if self.prices else 0.0)

    def passed(self, spent: Spent) -> str:
        """The cap that `spent` would pass, in words; empty if none."""
        tokens = spent.input + spent.output + spent.maybe_input + spent.maybe_output
        found = (
            ("max_requests", self.max_requests, spent.requests + spent.maybe_requests, "{:,.0f} requests"),
            ("max_tokens", self.max_tokens, tokens, "{:,.0f} tokens"),
            ("max_cost", self.max_cost, self.cost(spent), "${:,.4f}"),
        )
        for name, cap, used, form in found:
            # A hair of slack, or sums of floats would leave the last dollar unspent.
            if cap is not None and used > cap * (1 + 1e-12):
                return f"{name}: {form.format(used)} at worst, cap {form.format(cap)}"
        return ""


class BudgetReached(ValueError):
    """The next request could pass a cap."""


class Budget:
    """Sets money aside and gives it back. What is set aside at most is in the ledger too, for the case of a kill."""

    def __init__(self, caps: Caps, ledger: Ledger):
        self.caps = caps
        self._ledger = ledger
        self.reserved = Spent()
        self._lost = Spent()
        self._held = Spent()  # what the ledger knows to be in flight at most
        self._line = asyncio.Lock()
        self._given_back = asyncio.Event()

    def price(self, usage: Usage, worst: bool = False) -> float | None:
        prices = self.caps.prices
        if prices is None:
            return None
        return prices.worst(usage) if worst else prices.cost(usage)

    async def reserve(self, worst: Usage) -> Spent:
        """Waits while others in flight could still give back enough; raises BudgetReached when it is truly over."""
        cost = self.price(worst, worst=True)
        wanted = Spent(
            maybe_requests=1,
            maybe_input=worst.input,
            maybe_output=worst.output,
            maybe_cost=cost or 0.0,
            unpriced_input=0 if cost is not None else worst.input,
            unpriced_output=0 if cost is not None else worst.output,
        )
        async with self._line:
            while passed := self.caps.passed(self._ledger.spent + self.reserved + wanted):
                if self.caps.passed(self._ledger.spent + wanted):
                    raise BudgetReached(f"{passed}. Spent so far: {self.spent_line()}. Raise the cap to go on.")
                self._given_back.clear()
                await self._given_back.wait()
            self.reserved += wanted
            if not _covers(self._held, self.reserved):
                try:
                    # Half as much again, so that a growing crowd makes a handful of commits; not beyond a cap.
                    grown = _grown(self.reserved)
                    await self._hold(self.reserved if self.caps.passed(self._ledger.spent + grown) else grown)
                except BaseException:
                    self.release(wanted)
                    raise
        return wanted

    def release(self, reservation: Spent) -> None:
        self.reserved += _negative(reservation)
        self._given_back.set()

    def lose(self, reservation: Spent) -> None:
        """Its end could not be stored: the next run on the ledger counts it as maybe billed."""
        self._lost += reservation

    async def close(self) -> None:
        """Nothing is in flight any more."""
        if self._held != self._lost:
            await self._hold(self._lost)

    async def _hold(self, amount: Spent) -> None:
        await self._ledger.hold(amount)
        self._held = amount

    def spent_line(self) -> str:
        spent = self._ledger.spent
        tokens = spent.input + spent.output + spent.maybe_input + spent.maybe_output
        money = "" if self.caps.prices is None else f", ${self.caps.cost(spent):,.4f}"
        return f"{spent.requests + spent.maybe_requests:,} requests, {tokens:,} tokens{money}"


def _covers(held: Spent, needed: Spent) -> bool:
    # Sums of floats that come and go leave dust.
    return all(held.__dict__[name] >= value - 1e-9 for name, value in needed.__dict__.items())


def _grown(amount: Spent) -> Spent:
    return Spent(
        **{name: math.ceil(n * 1.5) if isinstance(n, int) else n * 1.5 for name, n in amount.__dict__.items()}
    )


def _negative(amount: Spent) -> Spent:
    return Spent(**{name: -value for name, value in amount.__dict__.items()})
