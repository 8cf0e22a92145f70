"""Faults of the server: what is retried, what waits, what is given up, what ends the run."""

import asyncio
import time
from collections import Counter

import pytest

from data_generation import asking, limits
from data_generation.ledger import Ledger
from data_generation.limits import Pace
from data_generation.teacher import Teacher
from tests.asking import KEY, ask, question, questions
from tests.openai_server import FakeServer


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Backoff is a tenth as long; what the server asks for is not."""
    monkeypatch.setattr(asking.random, "uniform", lambda low, high: 0.1)
    monkeypatch.setattr(limits, "LONGEST_PAUSE", 6.0)


@pytest.mark.parametrize(
    "status, headers, wait",
    [
        (429, {"retry-after": "1"}, 1.0),
        (503, {"retry-after-ms": "700"}, 0.7),
        (429, {"retry-after": "$SECONDS"}, 1.0),  # a date two seconds from now, in whole seconds
        (429, {}, 0.05),
        (429, {"retry-after": "0"}, 0.05),
    ],
)
def test_everybody_waits_when_one_is_told_to(tmp_path, status, headers, wait):
    fault = {"match": "q20", "times": 1, "status": status, "headers": headers}
    with FakeServer(latency=0.02, faults=[fault]) as server:
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(60), Pace(concurrency=4))
        seen = [at for at, _, _ in server.stats()["seen"]]
    assert stopped is None and len(replies) == 60 and not any(reply.error for reply in replies.values())
    gaps = [later - earlier for earlier, later in zip(seen, seen[1:], strict=False)]
    # The longest silence of all, from the refusal on, nobody else sent anything.
    assert max(gaps) >= wait - 0.05
    assert len(seen) == 61


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_without_end_is_left_tried_again_and_told(tmp_path, status):
    fault = {"match": "q2", "times": 3, "endless": status}
    with FakeServer(faults=[fault]) as server:
        pace = Pace(concurrency=2, attempts=2, deadline=60)
        began = time.monotonic()
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(5), pace)
        assert time.monotonic() - began < 30 and stopped is None
        assert replies["q2"].error == "too_long" and [r.error for r in replies.values()].count("") == 4
        # 4 MB, and 4096 for each of 50 tokens.
        assert replies["q2"].detail == "the reply has more than 4,399,104 bytes, which its tokens cannot take"
        replies, _ = ask(server.url, tmp_path / "l.sqlite", questions(5), pace)
        assert replies["q2"].text == "answer to q2"
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert (ledger.spent.requests, ledger.spent.maybe_requests) == (5, 3)


def test_a_wait_longer_than_patience_ends_the_run(tmp_path):
    fault = {"match": "q3", "status": 429, "headers": {"retry-after": "121"}}
    with FakeServer(faults=[fault]) as server:
        began = time.monotonic()
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(50), Pace(concurrency=2, patience=60))
    assert stopped is not None and stopped.reason == "throttled" and "121 s" in str(stopped)
    assert time.monotonic() - began < 10
    assert 2 <= len(replies) < 50 and not any(reply.error for reply in replies.values())


def test_being_told_to_wait_uses_up_no_attempts(tmp_path):
    fault = {"match": "q1", "times": 6, "status": 429, "headers": {"retry-after-ms": "30"}}
    with FakeServer(faults=[fault]) as server:
        replies, _ = ask(server.url, tmp_path / "l.sqlite", questions(3), Pace(concurrency=2, attempts=2))
    assert not any(reply.error for reply in replies.values())


def test_fewer_at_once_after_a_refusal(tmp_path):
    slots = limits.Slots(64)
    assert slots.limit == 1
    slots.open()
    slots.narrow()
    assert slots.limit == 32
    for _ in range(33):
        slots.widen()
    assert 32.9 < slots.limit < 33.1  # one more for a round of answers

    pause = limits.Pause()
    assert pause.hit(time.monotonic(), None)
    first = pause.until
    assert not pause.hit(pause.began - 1, None)  # was under way when the pause began
    assert pause.until == first
    assert pause.hit(time.monotonic(), None) and pause.until > first


def test_a_run_that_was_refused_goes_on_with_fewer(tmp_path):
    async def run(url):
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY, pace=Pace(concurrency=32)) as teacher:
                replies = [reply async for _, reply in teacher.ask(questions(100))]
                return [reply.error for reply in replies], teacher._asker._slots.limit

    fault = {"match": "q90", "times": 2, "status": 429, "headers": {"retry-after-ms": "50"}}
    with FakeServer(latency=0.05, faults=[fault]) as server:
        errors, limit = asyncio.run(run(server.url))
    assert errors == [""] * 100 and 8 <= limit < 20  # 32, 16, 8, and a few answers after that


TRIED_AGAIN = {
    "a 500": ({"status": 500}, "http_500"),
    "a 502": ({"status": 502}, "http_502"),
    "a 503 without Retry-After": ({"status": 503}, "http_503"),
    "a 529": ({"status": 529}, "http_529"),
    "a 408": ({"status": 408}, "http_408"),
    "a 409": ({"status": 409}, "http_409"),
    "a reset": ({"close": "rst"}, "connection"),
    "an end": ({"close": "fin"}, "connection"),
    "a reset after the work": ({"close": "rst", "billed": True}, "connection"),
    "a body cut short": ({"raw": 80, "length": 999}, "connection"),
    "JSON cut short": ({"raw": 80}, "unusable"),
    "nothing": ({"raw": ""}, "unusable"),
    "a page": ({"raw": "<html>busy</html>", "type": "text/html"}, "unusable"),
    "an error in a 200": ({"raw": '{"error": {"message": "busy"}}'}, "unusable"),
    "no choices": ({"patch": {"choices": None}}, "unusable"),
    "empty choices": ({"patch": {"choices": []}}, "unusable"),
    "no message": ({"patch": {"choices": [{"message": None}]}}, "unusable"),
}


def test_a_fault_is_tried_again_and_given_up_in_the_end(tmp_path):
    faults, wanted = [], list(questions(20))
    for name, (fault, _) in TRIED_AGAIN.items():
        faults += [{"match": f"{name} twice", "times": 2, **fault}, {"match": f"{name} always", "times": 99, **fault}]
        wanted += [question(f"{name} twice"), question(f"{name} always")]
    with FakeServer(faults=faults) as server:
        pace = Pace(concurrency=8, attempts=4, deadline=5)
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", wanted, pace)
        tries = Counter(name for _, _, name in server.stats()["seen"])
    assert stopped is None
    for name, (_, reason) in TRIED_AGAIN.items():
        assert (name, replies.pop(f"{name} always").error) == (name, reason)
        assert (name, tries[f"{name} twice"], tries[f"{name} always"]) == (name, 3, 4)
    assert {name: reply.text for name, reply in replies.items()} == {name: f"answer to {name}" for name in replies}
    assert len(replies) == 20 + len(TRIED_AGAIN) and tries["q5"] == 1


def test_a_refused_request_costs_itself_alone(tmp_path):
    refused = {"q70": "http_400", "q71": "http_413", "q72": "http_422"}
    faults = [{"match": name, "status": int(reason[-3:])} for name, reason in refused.items()]
    faults.append({"match": "q73", "status": 400, "error": {"code": "content_filter"}})
    with FakeServer(faults=faults) as server:
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(100))
        tries = Counter(name for _, _, name in server.stats()["seen"])
    assert stopped is None and len(replies) == 100 and set(tries.values()) == {1}
    found = {name: reply.error for name, reply in replies.items() if reply.error}
    assert found == refused | {"q73": "content_filter"}


def test_when_all_are_refused_the_run_ends(tmp_path):
    with FakeServer(faults=[{"status": 400, "times": 10**6}]) as server:
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(500), Pace(concurrency=4))
        assert server.stats()["requests"] < 50
    assert stopped is not None and stopped.reason == "hopeless" and "HTTP 400" in str(stopped)


def test_a_deadline_is_of_the_whole_answer(tmp_path):
    # Every piece comes well within the deadline, all ten do not.
    with FakeServer(faults=[{"match": "q2", "drip": 0.15, "times": 1}]) as server:
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(4), Pace(concurrency=4, deadline=0.7))
        assert server.stats()["billed"]["q2"] == 2
    assert stopped is None and not any(reply.error for reply in replies.values())


def test_usage_may_be_missing(tmp_path):
    with FakeServer(faults=[{"match": "q2", "patch": {"usage": None}}]) as server:
        replies, _ = ask(server.url, tmp_path / "l.sqlite", questions(4))
    assert replies["q2"].text == "answer to q2" and replies["q2"].usage is None


@pytest.mark.parametrize(
    "fault, reason",
    [
        ({"status": 401, "error": {"message": f"Incorrect API key provided: {KEY}."}}, "unauthorized"),
        ({"status": 403}, "forbidden"),
        ({"status": 404}, "not_found"),
        ({"status": 402}, "payment"),
        ({"status": 429, "error": {"code": "insufficient_quota"}}, "insufficient_quota"),
    ],
)
def test_what_stops_every_request_is_asked_once(tmp_path, caplog, fault, reason):
    caplog.set_level("DEBUG")
    with FakeServer(faults=[{**fault, "times": 10**6}]) as server:
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(1000), Pace(concurrency=64))
        assert server.stats()["requests"] == 1
    assert replies == {} and stopped is not None and stopped.reason == reason
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY not in str(stopped) and KEY not in caplog.text and KEY.encode() not in written


def test_a_quota_that_ends_midway_keeps_what_was_answered(tmp_path):
    fault = {"match": "q30", "status": 429, "error": {"code": "insufficient_quota"}, "times": 9}
    with FakeServer(latency=0.05, faults=[fault]) as server:
        replies, stopped = ask(server.url, tmp_path / "l.sqlite", questions(200), Pace(concurrency=8))
        billed = server.stats()["billed"]
    assert stopped is not None and stopped.reason == "insufficient_quota"
    assert set(replies) == set(billed) and len(replies) < 60


def test_nobody_there(tmp_path):
    pace = Pace(concurrency=16, attempts=3)
    replies, stopped = ask("http://127.0.0.1:9/v1", tmp_path / "l.sqlite", questions(100), pace)
    assert stopped is not None and stopped.reason == "unreachable" and len(replies) <= 1


def test_a_reply_that_quotes_the_key_is_stored_without_it(tmp_path):
    message = {"role": "assistant", "content": f"your key is {KEY}"}
    with FakeServer(faults=[{"patch": {"choices": [{"message": message}]}}]) as server:
        replies, _ = ask(server.url, tmp_path / "l.sqlite", questions(1))
    assert replies["q0"].text == "your key is [key]"
