"""What a run will take, before anything is sent: requests, tokens, money, hours. Estimates, each with its ceiling."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .budget import Prices
from .exchange import Usage
from .pipeline import Plan, Task
from .sizes import CHARACTERS_PER_TOKEN, Sizes


CHEAP = 0.5  # what batches and the flex tier cost of the price, where a provider has them


@dataclass
class Estimate:
    """Of the first attempts. `fixed` is the part of the input that is the same in every request of a kind."""

    requests: Counter[str] = field(default_factory=Counter)
    answered: int = 0  # need no request
    input: int = 0
    fixed: int = 0
    output: int = 0
    most_output: int = 0

    def lines(self, prices: Prices | None, rpm: float | None, tpm: float | None) -> list[str]:
        number = self.requests.total()
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.requests.items())
        lines = [f"requests: {number:,}" + (f" ({kinds})" if kinds else "")]
        if self.answered:
            lines.append(f"answered already: {self.answered:,}, which cost nothing")
        lines += [
            f"input tokens: {self.input:,}, of which {self.fixed:,} are the same in all requests of a kind",
            f"output tokens: {self.output:,} if answers are as long as the examples, {self.most_output:,} at most",
        ]
        if prices is None:
            lines.append("money: give --price-input and --price-output, in dollars per million tokens")
        else:
            for name, factor in (("sync", 1.0), ("flex", CHEAP), ("batch", CHEAP)):
                lines.append(f"money, {name}: {self.money(prices.times(factor), prices.cached_input is not None)}")
            lines.append(f"flex and batch: taken at {CHEAP:.0%} of the price, where a provider has them")
        hours = self.hours(rpm, tpm)
        lines.append(
            f"hours at the given limits: {hours:,.1f} at least"
            if hours is not None
            else "hours: give --rpm or --tpm, the limits of your account"
        )
        lines.append("answers that cannot be used are asked for again, which is not in these figures")
        return lines

    def money(self, prices: Prices, has_cache: bool) -> str:
        likely = prices.cost(Usage(self.input, self.output))
        words = f"{dollars(likely)}, at most {dollars(prices.cost(Usage(self.input, self.most_output)))}"
        if has_cache:
            words += f"; {dollars(prices.cost(Usage(self.input, self.output, self.fixed)))} with the same part cached"
        return words

    def hours(self, rpm: float | None, tpm: float | None) -> float | None:
        # A request takes its highest possible output from the limit of tokens when it is sent and gives back the rest.
        minutes = [self.requests.total() / rpm] if rpm else []
        minutes += [(self.input + self.output) / tpm] if tpm else []
        return max(minutes) / 60 if minutes else None


def dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"


def estimate(
    plan: Plan, tasks: Iterable[Task], find: Callable[[str, Sequence[str]], list[bytes | None]], host: str
) -> Estimate:
    """`find`: what the ledger has, as in `outcomes`."""
    found, sizes = Estimate(), Sizes()
    replies = {
        kind: int(sum(len(reply) for _, reply in prompt.shots) / max(len(prompt.shots), 1) / CHARACTERS_PER_TOKEN)
        for kind, prompt in plan.prompts.items()
    }
    for task in tasks:
        request = plan.request(task)
        payload = request.payload()
        if find(task.image.id, [request.key(host, payload)]) != [None]:
            found.answered += 1
            continue
        usage = sizes.estimate(request.body, payload)
        found.requests[task.kind] += 1
        found.input += usage.input
        found.fixed += int(usage.input * (1 - len(request.body["messages"][-1]["content"]) / len(payload)))
        found.output += min(replies[task.kind], usage.output)
        found.most_output += usage.output
    return found
