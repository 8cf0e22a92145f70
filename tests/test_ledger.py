"""The ledger: what it says is stored is on disk, once, and nobody else gets in."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_generation.exchange import Request, Usage, read_reply
from data_generation.ledger import Attempt, Ledger, LedgerInUse, Spent


def attempt(number: int, **fields) -> Attempt:
    known = {"outcome": "answer", "usage": Usage(10, 5), "body": f"body {number}".encode(), "tag": f"row {number}"}
    return Attempt(f"{number:032x}", **known | fields)


def put(ledger: Ledger, *attempts: Attempt) -> list[bool]:
    async def run():
        return await asyncio.gather(*(ledger.put(one) for one in attempts))

    return asyncio.run(run())


def test_what_is_put_is_found_by_the_next_process(tmp_path):
    path = tmp_path / "new folder" / "ledger.sqlite"
    with Ledger(path) as ledger:
        put(ledger, *(attempt(number) for number in range(1200)))
    with Ledger(path) as ledger:
        assert ledger.find([f"{7:032x}", "ab" * 16, f"{1199:032x}"]) == [b"body 7", None, b"body 1199"]
        found = list(ledger.answers())
        assert [one.tag for one in found] == [f"row {number}" for number in range(1200)]
        assert found[1].key == f"{1:032x}" and found[1].body == b"body 1" and abs(found[1].at - time.time()) < 60
        assert ledger.count() == 1200
        assert ledger.spent == Spent(1200, input=12_000, output=6_000, unpriced_input=12_000, unpriced_output=6_000)


def test_a_second_answer_to_one_key_changes_nothing(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        again = attempt(1, body=b"other", usage=Usage(99, 99))
        assert put(ledger, attempt(1)) + put(ledger, again) == [True, False]
        assert ledger.find([again.key]) == [b"body 1"] and ledger.spent.input == 10


def test_attempts_without_an_answer_count_and_are_not_found(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        broken = attempt(1, outcome="unusable", body=b"{", cost=0.5)
        unknown = attempt(1, outcome="unknown", body=b"", maybe=True, cost=2.0, usage=Usage(100, 50))
        assert put(ledger, broken, unknown, unknown, attempt(1, cost=0.25)) == [True] * 4
        assert ledger.find([broken.key]) == [b"body 1"] and ledger.count() == 1
    with Ledger(tmp_path / "l") as ledger:
        spent = ledger.spent
        assert (spent.requests, spent.maybe_requests, spent.cost, spent.maybe_cost) == (2, 2, 0.75, 4.0)
        assert (spent.maybe_input, spent.maybe_output, spent.unpriced_input) == (200, 100, 0)


def test_put_returns_after_the_commit_and_many_share_one(tmp_path, monkeypatch):
    commits = []
    original = Ledger._carry_out

    def counted(self, works):
        outcome = original(self, works)
        commits.append((len(works), threading.current_thread().name))
        return outcome

    monkeypatch.setattr(Ledger, "_carry_out", counted)
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        put(ledger, *(attempt(number) for number in range(2000)))
        # As after a kill: a copy of the files without closing anything.
        for name in ("l", "l-wal"):
            (tmp_path / f"copy{name[1:]}").write_bytes((tmp_path / name).read_bytes())
    assert sum(number for number, _ in commits) == 2000 and len(commits) < 200
    assert all(name == "ledger l" for _, name in commits)
    with Ledger(tmp_path / "copy") as copy:
        assert copy.count() == 2000 and copy.spent.requests == 2000


def test_full_synchronisation_and_no_shared_memory(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        put(ledger, attempt(1))
        found = [ledger._wait(lambda db, name=name: db.execute(f"pragma {name}").fetchone()[0]) for name in PRAGMAS]
        assert found == ["wal", 2, "exclusive"]
        assert {path.name for path in tmp_path.iterdir()} == {"l", "l-wal"}


PRAGMAS = ("journal_mode", "synchronous", "locking_mode")


def test_a_second_process_is_refused(tmp_path):
    code = f"from data_generation.ledger import Ledger\nLedger({str(tmp_path / 'l')!r})"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    with Ledger(tmp_path / "l") as ledger:
        put(ledger, attempt(1))
        refused = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert refused.returncode == 1 and "LedgerInUse" in refused.stderr
        assert "another process is using this ledger" in refused.stderr
        with pytest.raises(LedgerInUse):
            Ledger(tmp_path / "l")
        put(ledger, attempt(2))
    assert subprocess.run(command, cwd=root).returncode == 0


def test_what_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "text").write_text("x" * 5000)
    with pytest.raises(ValueError, match="is no ledger"):
        Ledger(tmp_path / "text")
    db = sqlite3.connect(tmp_path / "other")
    db.execute("create table x (y)")
    db.close()
    with pytest.raises(ValueError, match="a ledger of format 0"):
        Ledger(tmp_path / "other")
    assert (tmp_path / "text").read_text() == "x" * 5000


def test_a_disk_that_cannot_be_written_is_an_error_for_everyone_who_waits(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        put(ledger, attempt(1))
        ledger._wait(lambda db: db.execute("pragma max_page_count = 1").fetchone())
        with pytest.raises(OSError, match="nothing could be written"):
            put(ledger, *(attempt(number, body=bytes(range(256)) * 400) for number in range(2, 300)))
        assert ledger.spent.requests == 1
        assert ledger.find([f"{1:032x}"]) == [b"body 1"]
    with pytest.raises(ValueError, match="closed"):
        ledger.find([])


def test_odd_text_is_stored(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        put(ledger, attempt(1, tag="half \ud83d a pair"))
        assert next(ledger.answers()).tag == "half ? a pair"


def test_notes_survive(tmp_path):
    async def write(ledger):
        await ledger.note("shard 1", {"state": "built"})
        await ledger.note("shard 1", {"state": "created"})
        await ledger.note("shard 2", [1])
        await ledger.note("other", 1)
        await ledger.note("shard 2", None)

    with Ledger(tmp_path / "l") as ledger:
        asyncio.run(write(ledger))
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.notes("shard ") == {"shard 1": {"state": "created"}}


def test_what_was_in_flight_at_a_kill_counts_once(tmp_path, caplog):
    held = Spent(maybe_requests=3, maybe_input=300, maybe_output=30, maybe_cost=0.5)
    with Ledger(tmp_path / "l") as ledger:
        asyncio.run(hold(ledger, held))
    for _ in range(2):
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.spent == held
    assert caplog.text.count("up to 3 requests in flight") == 1


async def hold(ledger: Ledger, amount: Spent) -> None:
    await ledger.hold(amount)


def test_a_key_is_of_everything_that_decides_the_answer():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0.5}
    key = Request(body).key("a.com/v1")
    assert len(key) == 32 and key == Request(dict(reversed(body.items())), tag="row").key("a.com/v1")
    others = [
        Request(body, sample=1).key("a.com/v1"),
        Request(body).key("b.com/v1"),
        *(Request(body | change).key("a.com/v1") for change in ({"temperature": 0.6}, {"seed": 1}, {"model": "n"})),
        # Properties of a schema are written in their order, so their order decides.
        Request(body | {"response_format": {"a": 1, "b": 2}}).key("a.com/v1"),
        Request(body | {"response_format": {"b": 2, "a": 1}}).key("a.com/v1"),
    ]
    assert len({key, *others}) == 8
    # A fixed value: another key for the same request would buy every answer again.
    assert key == "1446b9f51a526f091a6c5e2c76dbff88"


NAMES = ["choices", "message", "content", "usage", "prompt_tokens", "prompt_tokens_details", "model"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES), inner),
)


@settings(max_examples=150)
@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_reply_can_be_read(raw):
    reply = read_reply("k", raw)
    assert reply.error == "unusable" or isinstance(reply.text, str)
    assert reply.usage is None or reply.usage.tokens > 0


def test_a_nested_reply_is_read():
    assert read_reply("k", b"[" * 100_000).error == "unusable"
    assert read_reply("k", b'{"choices": [{"message": {"content": ["x"]}}]}').text == ""
