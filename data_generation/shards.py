"""Where every batch stands, in the ledger: a shard is a file of requests on its way through the Batch API.

built -> uploaded -> created -> done -> imported -> deleted. Each step is on disk before the next begins, and before a
step that must not happen twice the intention is (`tried`), so that after a kill we know when to look first.
"""

import sqlite3
from collections import Counter
from dataclasses import asdict, dataclass, field

from data_generation.ledger import Ledger, Spent, write_note
from data_generation.rejections import Rejected


PREFIX = "batch "
EXAMPLES = 5  # ids kept for every reason


@dataclass
class Tally:
    """What came of requests. `failed`: reason -> number and examples, by their tags where these are known; they may be
    asked again. `reasons`: by key, of those that failed while this was counted. `models`: who wrote, by the answers.
    """

    cached: int = 0  # had their answer before
    answered: int = 0
    failed: dict[str, list] = field(default_factory=dict)
    reasons: dict[str, Rejected] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    is_complete: bool = True

    def fail(self, reason: str, key: str, detail: str, tag: str | None = None) -> None:
        self.add(reason, 1, [tag or key or detail])
        if key:
            self.reasons[key] = Rejected(f"failed-{reason.replace('_', '-')}", detail)

    def add(self, reason: str, number: int, examples: list[str]) -> None:
        known = self.failed.get(reason, [0, []])
        self.failed[reason] = [known[0] + number, (known[1] + examples)[:EXAMPLES]]


@dataclass
class Shard:
    name: str  # unique in the account: the file's name there, and in the batch's metadata
    sha256: str
    count: int
    tokens: int  # estimate, for the limit on enqueued tokens
    worst_input: int
    worst_output: int
    round: int = 1  # how often these requests have been in a batch
    state: str = "built"
    tried: str = ""  # "upload" or "create": it was begun, and we may not have heard how it ended
    input_file: str = ""
    batch: str = ""
    status: str = ""  # the server's last word
    outputs: list[str] = field(default_factory=list)  # ids of the output and the error file
    answered: int = 0
    failed: dict[str, list] = field(default_factory=dict)  # reason -> [number, examples]

    def worst(self, cost: float | None) -> Spent:
        return Spent(
            maybe_requests=self.count,
            maybe_input=self.worst_input,
            maybe_output=self.worst_output,
            maybe_cost=cost or 0.0,
        )


def load(ledger: Ledger) -> list[Shard]:
    return [Shard(**found) for found in ledger.notes(PREFIX).values()]


async def save(ledger: Ledger, shard: Shard) -> None:
    await ledger.note(PREFIX + shard.name, asdict(shard))


async def save_new(ledger: Ledger, shard: Shard, tags: dict[str, str], old: Shard | None = None) -> None:
    """A shard and the keys in it, in one step; `old` is the one whose leftovers these are."""

    def work(db: sqlite3.Connection) -> None:
        if old is not None:
            write_note(db, PREFIX + old.name, asdict(old))
        write_note(db, PREFIX + shard.name, asdict(shard))
        db.executemany(
            "insert or replace into waiting values (?, ?, ?)",
            [(bytes.fromhex(key), shard.name, tag) for key, tag in tags.items()],
        )

    await ledger.do(work)


async def release(ledger: Ledger, shard: Shard) -> None:
    """Saves the shard and forgets which keys were in it: what it did not answer may be asked again."""

    def work(db: sqlite3.Connection) -> None:
        write_note(db, PREFIX + shard.name, asdict(shard))
        db.execute("delete from waiting where shard = ?", (shard.name,))

    await ledger.do(work)


async def waiting(ledger: Ledger, keys: list[str]) -> list[str | None]:
    """For each key the tag it waits with, None if it is in no batch."""

    def work(db: sqlite3.Connection) -> list[str | None]:
        rows = (db.execute("select tag from waiting where key = ?", (bytes.fromhex(key),)).fetchone() for key in keys)
        return [row and row[0] for row in rows]

    return await ledger.do(work)
