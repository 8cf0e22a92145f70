"""Rows out of outcomes, and all that is said about a data set: counts by reason with examples, lengths, samples."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .duplicates import Duplicates
from .ledger import Spent
from .pipeline import Outcome, Plan
from .rejections import Counts, Rejected
from .rows import Row, messages_of
from .selection import place
from .sources import AnnotatedImage


SAMPLES = 8  # rows of each kind on the page
EXAMPLES = 3  # replies of each reason on the page
BIN = 20  # characters


@dataclass
class Sample:
    id: str
    kind: str
    picture: Any
    captions: tuple[str, ...]
    turns: list[tuple[str, str]]


@dataclass
class Summary:
    """What became of everything.

    Args:
        source: images read.
        tasks: rows that could be asked for.
        rows: rows in the data set, and why others are not.
        replies: answers that were refused, with those whose next attempt was good.
        attempts: how many rows came with the first answer, the second, ...
        lengths: (kind, `question` or `answer`) -> characters, in bins -> how many.
        refused: reason -> (row id, detail, the reply) of the first.
    """

    source: Counts = field(default_factory=Counts)
    tasks: Counts = field(default_factory=Counts)
    rows: Counts = field(default_factory=Counts)
    replies: Counts = field(default_factory=Counts)
    wanted: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    images: int = 0
    lengths: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)
    refused: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    cost: float | None = None
    _samples: dict[str, list[tuple[int, str, Sample]]] = field(default_factory=dict)

    def samples(self) -> list[Sample]:
        """The same ones for the same rows, from all over the data set."""
        return [
            sample for heap in self._samples.values() for _, _, sample in sorted(heap, key=lambda x: (-x[0], x[1]))
        ]

    def rows_of(
        self,
        outcomes: Iterable[Outcome],
        plan: Plan,
        duplicates: Duplicates | None,
        source: str,
        picture_of: Callable[[AnnotatedImage], Any],
    ) -> Iterator[Row]:
        """A row for every good outcome that says something new; the rest is counted."""
        last = None
        versions = {kind: prompt.version for kind, prompt in plan.prompts.items()}
        for outcome in outcomes:
            task = outcome.task
            self.wanted[task.kind] += 1
            for attempt, (rejection, reply) in enumerate(outcome.rejected, 1):
                self.replies.reject(f"{task.id}, attempt {attempt}", rejection)
                examples = self.refused.setdefault(rejection.reason, [])
                if len(examples) < EXAMPLES and all(row != task.id for row, _, _ in examples):
                    examples.append((task.id, rejection.detail, reply.text[:1000]))
            try:
                if outcome.reply is None:
                    raise outcome.rejection or Rejected("no-answer", "there is none.")
                self.replies.keep()
                if duplicates is not None:
                    duplicates.check(outcome.turns, task.id)
            except Rejected as rejection:
                self.rows.reject(task.id, rejection)
                continue
            self.rows.keep()
            self.images += task.image.id != last
            last = task.image.id
            row = {
                "id": task.id,
                "images": [picture_of(task.image)],
                "messages": messages_of(outcome.turns),
                "kind": task.kind,
                "source": source,
                "image_id": [task.image.id],
                "model": outcome.reply.model,
                "prompt_version": versions[task.kind],
                "request_key": outcome.key,
            }
            self._look_at(outcome, outcome.reply.model, plan.seed)
            yield row

    def _look_at(self, outcome: Outcome, model: str, seed: int) -> None:
        task = outcome.task
        self.kept[task.kind] += 1
        self.turns[task.kind] += len(outcome.turns)
        self.attempts[len(outcome.rejected) + 1] += 1
        self.models[model] += 1
        for turn in outcome.turns:
            for what, text in zip(("question", "answer"), turn, strict=True):
                self.lengths.setdefault((task.kind, what), Counter())[len(text) // BIN * BIN] += 1
        sample = Sample(task.id, task.kind, task.image.image, task.image.captions, outcome.turns)
        heap = self._samples.setdefault(task.kind, [])
        entry = (-place(task.id, seed), task.id, sample)
        if len(heap) < SAMPLES:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
