"""What `llava answer` and `llava scienceqa answer` leave: one file of answers in the order of the questions, and until
it is whole a folder `FILE.journal` beside it, with `run.json`, which says what is asked of whom, and what was answered
so far.

A file or folder of other questions, another model or other settings is refused, so that no file mixes two.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_generation.replacing import write_atomically
from recipes.run_folder import alone_in, told_when_full


RUN, LEDGER = "run.json", "ledger.sqlite"
OF_ONE_ANSWER = ("version", "images", "finish_reason", "passes")


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal")


@contextmanager
def alone_at(out: Path, is_main: bool) -> Iterator[None]:
    """Keeps a second run out, and takes the journal away again where nothing was answered."""
    advice = "Make space and start the same command again: what was answered is kept."
    try:
        with told_when_full(journal_of(out), advice), alone_in(journal_of(out), is_main, "--out"):
            yield
    finally:
        if is_main and not read_journal(out):
            delete_journal(out)


def begin(out: Path, run: dict[str, Any], stored: bool) -> None:
    """Says in the journal what is asked; if it has `stored` answers to something else, that is an error."""
    path = journal_of(out) / RUN
    if stored:
        compare(json.loads(path.read_text(encoding="utf-8")), run, out)
    write_atomically(path, json.dumps(run, indent=1))


def is_finished(out: Path, run: dict[str, Any]) -> bool:
    """Whether the answers are there; those of another run are an error."""
    if not out.exists():
        return False
    try:
        with open(out, encoding="utf-8") as file:
            facts = json.loads(file.readline())["metadata"]
            compare({name: value for name, value in facts.items() if name not in OF_ONE_ANSWER}, run, out)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(
            f"`{out}` is there, and is no file of answers of ours. Give another --out, or move it away."
        ) from error
    return True


def compare(before: dict[str, Any], run: dict[str, Any], out: Path) -> None:
    before, run = _flat(before), _flat(run)
    differ = [name for name in sorted(before.keys() | run.keys()) if before.get(name) != run.get(name)]
    if differ:
        lines = "; ".join(f"{name} was {before.get(name)!r} and is {run.get(name)!r}" for name in differ)
        raise ValueError(
            f"`{out}` has answers of another run: {lines}. Give another --out, or delete it and `{journal_of(out)}`."
        )


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in json.loads(json.dumps(facts)).items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def read_journal(out: Path) -> dict[int, dict[str, Any]]:
    """Answers by the number of their question; half a line, as a kill may leave it, is none."""
    found = {}
    for part in sorted(journal_of(out).glob("part-*.jsonl")):
        for line in part.read_bytes().split(b"\n")[:-1]:
            one = json.loads(line)
            found[one.pop("number")] = one
    return found


class Part:
    """One process's part of the journal: what `add` was given is on disk when it returns."""

    def __init__(self, out: Path, process: int):
        path = journal_of(out) / f"part-{process:05d}.jsonl"
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self.file = open(path, "ab")  # noqa: SIM115

    def add(self, answers: Iterable[dict[str, Any]]) -> None:
        self.file.write(b"".join(json.dumps(one).encode() + b"\n" for one in answers))
        self.file.flush()  # without a buffer, a disk that fills up would take half of it and say nothing
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def write_answers(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_atomically(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def delete_journal(out: Path) -> None:
    """Except one with a ledger, whose answers may have been paid for."""
    if (journal_of(out) / LEDGER).exists():
        return
    shutil.rmtree(journal_of(out), ignore_errors=True)
