"""The durable record of what a teacher was asked, answered, and may have charged: one SQLite file, one process.

What is answered is here, committed to disk, before anything else happens to it; so an answer is never lost and never
bought again. Money in flight is here too: after a kill the next run knows how much may have been charged unseen.
"""

import asyncio
import concurrent.futures
import functools
import json
import logging
import operator
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_generation.exchange import Usage


FORMAT = 1
GROUP = 512  # orders that share one commit
GATHER = 0.005  # seconds an answer waits for others to share its commit; a commit costs as much work as a request
PAGE = 500  # answers read at a time when all are wanted

SCHEMA = (
    """
create table attempts (
    id integer primary key,
    key blob not null,
    tag text not null,
    at real not null,               -- seconds since 1970
    outcome text not null,          -- answer, unusable (no answer in it), unknown (maybe billed, nothing came)
    input integer not null,         -- tokens; the worst case where the server did not say
    output integer not null,
    cached integer not null,
    written integer not null,
    maybe integer not null,         -- 1: counted at the worst case, because nobody knows
    cost real,                      -- dollars at the prices of that day; null: without a price
    body blob                       -- zlib of the bytes as they came
)""",
    "create unique index answers on attempts (key) where outcome = 'answer'",
    "create table notes (name text primary key, value text not null)",
    # Keys that are in a batch file whose answers are not here yet.
    "create table waiting (key blob primary key, shard text not null, tag text not null) without rowid",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One request that was or may have been billed. `maybe`: `usage` is the worst case, not what the server said."""

    key: str
    outcome: Literal["answer", "unusable", "unknown"]
    usage: Usage
    body: bytes = b""
    tag: str = ""
    cost: float | None = None
    maybe: bool = False


@dataclass(frozen=True)
class Spent:
    """Totals since the ledger began. What is `maybe` billed is apart, `unpriced` is the part without a price."""

    requests: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0
    cost: float = 0.0
    maybe_requests: int = 0
    maybe_input: int = 0
    maybe_output: int = 0
    maybe_cost: float = 0.0
    unpriced_input: int = 0
    unpriced_output: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*map(operator.add, self.__dict__.values(), other.__dict__.values()))

    @classmethod
    def of(cls, attempt: Attempt) -> "Spent":
        usage, cost = attempt.usage, attempt.cost or 0.0
        unpriced = Usage() if attempt.cost is not None else usage
        rest = {"unpriced_input": unpriced.input, "unpriced_output": unpriced.output}
        if attempt.maybe:
            return cls(maybe_requests=1, maybe_input=usage.input, maybe_output=usage.output, maybe_cost=cost, **rest)
        return cls(1, usage.input, usage.output, usage.cached, usage.written, cost, **rest)


@dataclass(frozen=True)
class Stored:
    """An answer as it lies in the ledger; `body` holds the server's bytes."""

    key: str
    tag: str
    at: float
    body: bytes


class LedgerInUse(ValueError):
    """Another process holds the ledger."""


Future = asyncio.Future | concurrent.futures.Future


class Ledger:
    """Every use of the file goes through one thread: while it waits for the disk, the next orders gather, and all of
    them share the next commit. `await put(...)` returns when its commit is on disk.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = _open(self.path)
        self.spent = Spent(**json.loads(self._note("spent") or "{}"))
        self._added = Spent()  # in the transaction that is open
        self._orders: queue.SimpleQueue = queue.SimpleQueue()
        self._closed = False
        self._count_what_was_in_flight()
        self._thread = threading.Thread(target=self._serve, name=f"ledger {self.path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._orders.put(None)
            self._thread.join()

    # -- answers --

    async def put(self, attempt: Attempt) -> bool:
        """True once it is on disk; False if the key had an answer already, which then stays the only one."""
        return await self._order(lambda db: self._insert(db, attempt), _future(), can_gather=True)

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """The stored bytes for each key, None where there is no answer."""
        return await self.do(lambda db: _bodies(db, keys))

    def find(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `get`, for code without an event loop."""
        return self._wait(lambda db: _bodies(db, keys))

    def answers(self) -> Iterator[Stored]:
        """Every stored answer, oldest first, without holding them all: for code without an event loop."""
        last = 0
        while rows := self._wait(functools.partial(_page, after=last)):
            for number, key, tag, at, body in rows:
                yield Stored(key.hex(), tag, at, zlib.decompress(body))
                last = number

    def count(self) -> int:
        return self._wait(
            lambda db: db.execute("select count(*) from attempts where outcome = 'answer'").fetchone()[0]
        )

    # -- notes: small facts that have to survive, as the state of a batch --

    async def note(self, name: str, value: Any) -> None:
        """Keeps `value`, anything JSON can hold; on disk when it returns. None forgets it."""
        await self.do(lambda db: write_note(db, name, value))

    def notes(self, prefix: str) -> dict[str, Any]:
        rows = self._wait(
            lambda db: db.execute(
                "select name, value from notes where substr(name, 1, ?) = ? order by name", (len(prefix), prefix)
            ).fetchall()
        )
        return {name: json.loads(value) for name, value in rows}

    async def hold(self, in_flight: Spent) -> None:
        """States durably how much, at most, is in flight from now on; after a kill it counts as maybe billed."""
        await self.note("in_flight", in_flight.__dict__)

    # -- the thread --

    def _serve(self) -> None:
        while True:
            orders = [self._orders.get()]
            if orders[0] is not None and orders[0][2]:
                time.sleep(GATHER)
            while len(orders) < GROUP and not self._orders.empty():
                orders.append(self._orders.get())
            last = None in orders
            orders = [order for order in orders if order is not None]
            _settle(orders, self._carry_out([order[0] for order in orders]))
            if last:
                self._db.close()
                return

    def _carry_out(self, works: list[Callable]) -> list[tuple[Any, Exception | None]]:
        """Results and errors of one group, committed together or not at all."""
        outcomes: list[tuple[Any, Exception | None]] = []
        self._added = Spent()
        try:
            self._db.execute("begin")
            for work in works:
                try:
                    outcomes.append((work(self._db), None))
                except sqlite3.OperationalError:
                    raise
                except Exception as error:  # of this order alone, and for whoever gave it
                    outcomes.append((None, error))
            if self._added != Spent():
                total = self.spent + self._added
                write_note(self._db, "spent", total.__dict__)
                self._db.execute("commit")
                self.spent = total
            else:
                self._db.execute("commit")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            failure = OSError(f"{self.path}: nothing could be written ({error}). Is the disk full, or gone?")
            return [(None, failure)] * len(works)
        return outcomes

    def _insert(self, db: sqlite3.Connection, attempt: Attempt) -> bool:
        usage = attempt.usage
        added = db.execute(
            "insert into attempts (key, tag, at, outcome, input, output, cached, written, maybe, cost, body) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
            (
                bytes.fromhex(attempt.key),
                attempt.tag.encode(errors="replace").decode(),
                time.time(),
                attempt.outcome,
                usage.input,
                usage.output,
                usage.cached,
                usage.written,
                int(attempt.maybe),
                attempt.cost,
                zlib.compress(attempt.body, 1) if attempt.body else None,
            ),
        )
        if added.rowcount == 1:
            self._added += Spent.of(attempt)
        return added.rowcount == 1

    def do(self, work: Callable[[sqlite3.Connection], Any]) -> asyncio.Future:
        """Has the thread carry out `work`; awaited, it is on disk."""
        return self._order(work, _future())

    def _wait(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        return self._order(work, concurrent.futures.Future()).result()

    def _order(self, work: Callable, future: Any, can_gather: bool = False) -> Any:
        if self._closed:
            raise ValueError(f"{self.path}: the ledger is closed")
        self._orders.put((work, future, can_gather))
        return future

    # -- opening; the thread does not run yet --

    def _note(self, name: str) -> str | None:
        row = self._db.execute("select value from notes where name = ?", (name,)).fetchone()
        return row and row[0]

    def _count_what_was_in_flight(self) -> None:
        lost = Spent(**json.loads(self._note("in_flight") or "{}"))
        if lost == Spent():
            return
        self.spent += lost
        self._db.execute("begin")
        write_note(self._db, "spent", self.spent.__dict__)
        write_note(self._db, "in_flight", None)
        self._db.execute("commit")
        log.warning(
            "%s: the last run ended with up to %d requests in flight. They count as maybe billed, at most %d tokens.",
            self.path,
            lost.maybe_requests,
            lost.maybe_input + lost.maybe_output,
        )


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
    try:
        # Before WAL: then SQLite needs no shared memory, which network file systems lack, and nobody else gets in.
        db.execute("pragma locking_mode = exclusive")
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute("begin exclusive")
        version = db.execute("pragma user_version").fetchone()[0]
        if version == 0 and not db.execute("select 1 from sqlite_master").fetchone():
            for statement in SCHEMA:
                db.execute(statement)
            db.execute(f"pragma user_version = {FORMAT}")
        elif version != FORMAT:
            raise ValueError(f"{path}: a ledger of format {version}, this code reads {FORMAT}. Take another --out.")
        db.execute("commit")
    except sqlite3.OperationalError as error:
        db.close()
        if "locked" in str(error):
            raise LedgerInUse(
                f"{path}: another process is using this ledger. Wait for it, end it, or give this run its own folder."
            ) from None
        raise OSError(f"{path}: cannot be opened as a ledger ({error})") from None
    except sqlite3.DatabaseError as error:
        db.close()
        raise ValueError(f"{path}: is no ledger ({error}). Take another --out.") from None
    except ValueError:
        db.close()
        raise
    return db


def _bodies(db: sqlite3.Connection, keys: Sequence[str]) -> list[bytes | None]:
    found = []
    for key in keys:
        row = db.execute(
            "select body from attempts where key = ? and outcome = 'answer'", (bytes.fromhex(key),)
        ).fetchone()
        found.append(zlib.decompress(row[0]) if row else None)
    return found


def _page(db: sqlite3.Connection, after: int) -> list[tuple]:
    return db.execute(
        "select id, key, tag, at, body from attempts where id > ? and outcome = 'answer' order by id limit ?",
        (after, PAGE),
    ).fetchall()


def write_note(db: sqlite3.Connection, name: str, value: Any) -> None:
    if value is None:
        db.execute("delete from notes where name = ?", (name,))
    else:
        db.execute("insert or replace into notes values (?, ?)", (name, json.dumps(value)))


def _future() -> asyncio.Future:
    return asyncio.get_running_loop().create_future()


def _settle(orders: list[tuple[Callable, Any, bool]], outcomes: list[tuple[Any, Exception | None]]) -> None:
    waiting: dict[asyncio.AbstractEventLoop, list] = {}
    for (_, future, _), outcome in zip(orders, outcomes, strict=True):
        if isinstance(future, concurrent.futures.Future):
            _resolve([(future, outcome)])
        else:
            waiting.setdefault(future.get_loop(), []).append((future, outcome))
    for loop, found in waiting.items():
        try:
            loop.call_soon_threadsafe(_resolve, found)
        except RuntimeError:
            log.debug("an event loop closed before %d of its orders were done; they are on disk", len(found))


def _resolve(found: list[tuple[Any, tuple[Any, Exception | None]]]) -> None:
    for future, (result, error) in found:
        if future.done():  # cancelled meanwhile
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
