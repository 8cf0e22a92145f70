"""What was left out, and why: a reason with words for one row, and the counts of a whole run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar


NUM_EXAMPLES = 5
T = TypeVar("T")


class Rejected(ValueError):
    """A row or a reply that cannot be used.

    Args:
        reason: a short slug that rows rejected alike share, such as `empty-box`; counted.
        detail: what was found, what was wanted and what to do, for one example of it.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # an exception of two arguments does not come through a process pool by itself
        return Rejected, (self.reason, self.detail)


@dataclass
class Counts:
    """How many rows were kept, rejected, or kept without some of their parts; with ids of the first of each."""

    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    trimmed: dict[str, int] = field(default_factory=dict)  # parts left out of rows that were kept
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # reason -> (id, detail)

    def keep(self) -> None:
        self.kept += 1

    def reject(self, name: str, rejection: Rejected) -> None:
        self._count(self.rejected, name, rejection)

    def trim(self, name: str, rejection: Rejected) -> None:
        self._count(self.trimmed, name, rejection)

    def _count(self, counts: dict[str, int], name: str, rejection: Rejected) -> None:
        counts[rejection.reason] = counts.get(rejection.reason, 0) + 1
        examples = self.examples.setdefault(rejection.reason, [])
        if len(examples) < NUM_EXAMPLES:
            # A name with half a surrogate pair could not be printed.
            examples.append((name.encode(errors="backslashreplace").decode(), rejection.detail))

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def num_trimmed(self) -> int:
        return sum(self.trimmed.values())

    def __str__(self) -> str:
        total = self.kept + self.num_rejected
        lines = [f"{self.kept:,} of {total:,} rows kept, {self.num_rejected:,} rejected."]
        lines += [self._line(reason, count, "rejected") for reason, count in _most_common(self.rejected)]
        lines += [self._line(reason, count, "parts left out") for reason, count in _most_common(self.trimmed)]
        return "\n".join(lines)

    def _line(self, reason: str, count: int, what: str) -> str:
        examples = self.examples[reason]
        names = ", ".join(f"`{name}`" for name, _ in examples) + (", ..." if count > len(examples) else "")
        return f"- {count:,} {what}, {reason}: {names}. The first: {examples[0][1]}"


def unless_spoilt(rows: Iterable[T], counts: Counts, strict: bool) -> Iterator[T]:
    """The rows; behind the last an error if there were none, or if `strict` and not all of them were whole.

    A file that is written from them and takes its name only at the end is then not written at all.
    """
    yield from rows
    if strict and (counts.num_rejected or counts.num_trimmed):
        raise ValueError(f"{counts}\nNothing was written, because of `--strict`.")
    if not counts.kept:
        raise ValueError(f"{counts}\nNothing is left to write.")


def _most_common(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
