"""A process that asks is killed, interrupted, or short of money: what was answered stays, what was paid is known."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from data_generation.budget import Caps, Prices
from data_generation.ledger import Ledger
from data_generation.limits import Pace
from tests.asking import ask, question, questions
from tests.openai_server import FakeServer


ROOT = Path(__file__).parent.parent
CHAOS = [
    {"share": 0.05, "status": 429, "headers": {"retry-after-ms": "150"}},
    {"share": 0.03, "status": 500},
    {"share": 0.02, "close": "rst"},
    {"share": 0.01, "raw": 80},
    {"share": 0.01, "raw": 80, "length": 999},
]


def start(server: FakeServer, path: Path, count: int, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.asking", server.url, str(path), str(count), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, timeout: float = 300) -> dict:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return json.loads(out)


def wait_for_requests(server: FakeServer, count: int) -> None:
    until = time.monotonic() + 60
    while server.stats()["requests"] < count:
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_and_finish(server: FakeServer, path: Path, count: int, kills: int, concurrency: int) -> dict:
    pick = random.Random(3)
    for number in range(kills):
        process = start(server, path, count, "--concurrency", str(concurrency))
        before = server.stats()["requests"]
        wait_for_requests(server, before + int(count * (0.05 + 0.12 * pick.random())) + number)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    return finish(start(server, path, count, "--concurrency", str(concurrency)))


@pytest.mark.parametrize(
    "count, kills, concurrency, faults",
    [
        (400, 2, 16, []),
        pytest.param(3000, 4, 64, [], marks=pytest.mark.slow),
        pytest.param(3000, 4, 64, CHAOS, marks=pytest.mark.slow),
    ],
)
def test_killed_again_and_again(tmp_path, count, kills, concurrency, faults):
    path = tmp_path / "l.sqlite"
    with FakeServer(latency=0.02, jitter=0.1, faults=faults) as server:
        found = kill_and_finish(server, path, count, kills, concurrency)
        stats = server.stats()
        assert (found["replies"], found["wrong"]) == (count, 0)
        with Ledger(path) as ledger:
            answers = list(ledger.answers())
            assert len(answers) == count == len({answer.tag for answer in answers})
            assert all(f"answer to {answer.tag}" in answer.body.decode() for answer in answers)
            spent = ledger.spent
        unusable = spent.requests - count
        cut = stats["twice"] - unusable  # bodies cut short are paid for and never seen
        assert unusable <= stats["twice"]
        if not faults:
            assert stats["twice"] <= kills * concurrency
        else:
            assert cut <= kills * concurrency + 0.03 * count
        # What may have been billed is known, never too low.
        assert spent.requests + spent.maybe_requests >= stats["total"]
        assert spent.input + spent.maybe_input >= stats["tokens"][0]

        before = stats["requests"]
        again = finish(start(server, path, count))
        assert again["cached"] == count and server.stats()["requests"] == before


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_it_waits_for_what_is_in_flight(tmp_path, number):
    path = tmp_path / "l.sqlite"
    with FakeServer(latency=0.25) as server:
        process = start(server, path, 2000, "--concurrency", "32")
        wait_for_requests(server, 50)
        os.kill(process.pid, number)
        found = finish(process)
        stats = server.stats()
        assert found["interrupted"] and found["asked"] == stats["total"] == found["replies"]
        assert 50 <= stats["total"] < 200
        rest = finish(start(server, path, 200, "--concurrency", "32"))
        assert rest["replies"] == 200 and server.stats()["twice"] == 0


def test_a_second_interruption_does_not_wait(tmp_path):
    with FakeServer(latency=15) as server:
        process = start(server, tmp_path / "l", 20, "--concurrency", "4")
        wait_for_requests(server, 1)
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        assert finish(process, timeout=8)["interrupted"]
    with Ledger(tmp_path / "l") as ledger:
        assert (ledger.spent.requests, ledger.spent.maybe_requests) == (0, 1)


def server_cost(stats: dict, prices: Prices) -> float:
    return (stats["tokens"][0] * prices.input + stats["tokens"][1] * prices.output) / 1e6


@pytest.mark.parametrize("faults", [[], CHAOS, [{"share": 0.2, "drip": 0.3}]])
def test_the_cap_is_never_passed(tmp_path, faults):
    prices = Prices(input=1000.0, output=2000.0)
    caps = Caps(max_cost=8.0, prices=prices)
    pace = Pace(concurrency=16, deadline=1.0, attempts=3)
    with FakeServer(latency=0.02, jitter=0.05, faults=faults) as server:
        replies, stopped = ask(server.url, tmp_path / "l", questions(1000), pace, caps)
        stats = server.stats()
        assert stopped is not None and stopped.reason == "budget" and "max_cost" in str(stopped)
        assert server_cost(stats, prices) <= caps.max_cost
        assert sum(not reply.error for reply in replies.values()) >= 20
        if not faults:
            # Nearly all of it was used: what is left would not have held one more at its worst.
            assert server_cost(stats, prices) > caps.max_cost - 0.6
        _, stopped = ask(server.url, tmp_path / "l", questions(1000), pace, caps)
        assert stopped is not None and server_cost(server.stats(), prices) <= caps.max_cost


def test_the_cap_holds_through_a_kill(tmp_path):
    # The client's prices: 1000 dollars a million both ways, so about 0.063 dollars a request, at worst 0.43.
    prices, cap = Prices(1000.0, 1000.0), 15.0
    with FakeServer(latency=0.02, jitter=0.1) as server:
        process = start(server, tmp_path / "l", 1000, "--concurrency", "8", "--max-cost", str(cap))
        wait_for_requests(server, 60)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = finish(start(server, tmp_path / "l", 1000, "--concurrency", "8", "--max-cost", str(cap)))
        assert found["stopped"] == "budget" and found["wrong"] == 0
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.spent.maybe_requests > 0
            assert server_cost(server.stats(), prices) <= ledger.spent.cost + ledger.spent.maybe_cost <= cap


@pytest.mark.parametrize("caps, most", [(Caps(max_requests=37), 37), (Caps(max_tokens=4000), 61)])
def test_caps_without_prices(tmp_path, caps, most):
    with FakeServer() as server:
        replies, stopped = ask(server.url, tmp_path / "l", questions(200), caps=caps)
        stats = server.stats()
    assert stopped is not None and stopped.reason == "budget"
    assert stats["total"] == len(replies) <= most and len(replies) >= most - 8
    assert sum(stats["tokens"]) <= 4000


def test_a_cap_needs_a_worst_case(tmp_path):
    with pytest.raises(ValueError, match="max_cost needs prices"):
        Caps(max_cost=1.0)
    with FakeServer() as server, pytest.raises(ValueError, match="max_completion_tokens"):
        ask(server.url, tmp_path / "l", [question(1, max_completion_tokens=None)], caps=Caps(max_tokens=10**6))
