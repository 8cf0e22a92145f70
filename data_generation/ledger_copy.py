"""A ledger that another process is using, as it is at one moment: for what only looks at it.

SQLite's two files are copied, the database and the log of what is not yet in it. They fit together if, while that
took place, the database rested and the log did not begin anew; beyond that a log only grows, and SQLite leaves out an
entry at its end that is cut.
"""

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from data_generation.ledger import LedgerInUse, write_note


TRIES = 100
REST = 0.05  # seconds that a database must not have changed; the clock of a file system is coarse


def copy_ledger(path: Path, folder: Path) -> Path:
    """The copy in `folder`, to be opened as any ledger."""
    copy, log = folder / path.name, path.with_name(f"{path.name}-wal")
    for _ in range(TRIES):
        before = _state(path, log)
        if time.time() - before[0] < REST:
            time.sleep(REST)
            continue
        shutil.copyfile(path, copy)
        if log.exists():
            shutil.copyfile(log, copy.with_name(log.name))
        if _state(path, log) == before:
            break
    else:
        raise LedgerInUse(f"{path}: changes too fast to be looked at. Try again later, or once its run is over.")
    with closing(sqlite3.connect(copy)) as db:
        write_note(db, "in_flight", None)  # the run that goes on will settle it
        db.commit()
    return copy


def _state(path: Path, log: Path) -> tuple[float, int, bytes]:
    """When the database was written to, its size, and the head of the log, which differs after each new beginning."""
    found = path.stat()
    head = b""
    if log.exists():
        with log.open("rb") as file:
            head = file.read(32)
    return found.st_mtime, found.st_size, head
