"""The teacher against a real server: nothing asked twice, limits kept, memory bounded, whoever reads on or not."""

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest

from data_generation import server as server_module
from data_generation import teacher as teacher_module
from data_generation.budget import Caps, Prices
from data_generation.exchange import Request
from data_generation.ledger import Ledger
from data_generation.limits import Bucket, Pace
from data_generation.server import host_of
from data_generation.teacher import Teacher, stored_replies
from tests.asking import KEY, ask, asked, question, questions
from tests.openai_server import FakeServer


def test_a_second_run_asks_nothing_and_a_change_asks_again(tmp_path):
    path = tmp_path / "l.sqlite"
    with FakeServer() as server:
        first, _ = ask(server.url, path, questions(100))
        second, _ = ask(server.url, path, questions(100))
        assert server.stats()["requests"] == 100
        assert not any(reply.cached for reply in first.values()) and all(reply.cached for reply in second.values())
        assert {name: replace(reply, cached=True) for name, reply in first.items()} == second
        assert second["q7"].text == "answer to q7" and second["q7"].usage.output == 3

        # Another parser, or the same requests from another place: free.
        with Ledger(path) as ledger:
            host = host_of(server.url)
            found = dict((asked(request), reply) for request, reply in stored_replies(ledger, questions(101), host))
        assert found.pop("q100") is None and found == second

        other = [{"role": "system", "content": "Other."}, {"role": "user", "content": "q1"}]
        for requests in (questions(100, temperature=0.1), [question(1, messages=other)]):
            requests = list(requests)
            before = server.stats()["requests"]
            ask(server.url, path, requests)
            assert server.stats()["requests"] == before + len(requests)
    with FakeServer() as elsewhere:
        ask(elsewhere.url, path, questions(100))
        assert elsewhere.stats()["requests"] == 100
        # A server that moves keeps its name, if it is given one.
        ask(elsewhere.url, path, questions(100), server=host_of(server.url))
        assert elsewhere.stats()["requests"] == 100


def test_equal_requests_are_asked_once(tmp_path):
    with FakeServer(latency=0.05) as server:
        replies = []

        async def run():
            with Ledger(tmp_path / "l") as ledger:
                async with Teacher(ledger, base_url=server.url, api_key=KEY, pace=Pace(concurrency=8)) as teacher:
                    wanted = [replace(question(number % 5), tag=str(number)) for number in range(500)]
                    async for request, reply in teacher.ask(wanted):
                        assert reply.text == f"answer to {asked(request)}"
                        replies.append((request.tag, reply.cached))

        asyncio.run(run())
        assert server.stats()["total"] == 5
    assert sorted(int(tag) for tag, _ in replies) == list(range(500))
    assert Counter(cached for _, cached in replies) == {False: 5, True: 495}


def test_another_try_goes_through_the_same_loop(tmp_path):
    async def run(url):
        seen = []
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY, pace=Pace(concurrency=4)) as teacher:
                async for request, _ in teacher.ask(questions(70)):
                    seen.append((asked(request), request.sample))
                    if request.sample < 2 and asked(request) in ("q3", "q69"):
                        teacher.again(replace(request, sample=request.sample + 1))
        return seen

    with FakeServer() as server:
        seen = asyncio.run(run(server.url))
        assert server.stats()["billed"]["q3"] == 3
    assert len(seen) == 74 and {("q3", 2), ("q69", 1), ("q69", 2)} <= set(seen)


def test_requests_are_read_as_needed_and_not_ahead(tmp_path):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield question(taken)

    async def run(url):
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY, pace=Pace(concurrency=8)) as teacher:
                count = 0
                async for _ in teacher.ask(endless()):
                    count += 1
                    assert taken < count + 6 * teacher_module.CHUNK + 100
                    if count == 1000:
                        break
            return count

    with FakeServer(latency=0.001) as server:
        count = asyncio.run(run(server.url))
        # Whoever stops reading loses nothing that was paid for.
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.count() == server.stats()["total"] >= count == 1000


def test_a_slow_reader_holds_up_the_sending(tmp_path):
    async def run(url):
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY, pace=Pace(concurrency=8)) as teacher:
                replies = teacher.ask(questions(10_000))
                await anext(replies)
                await asyncio.sleep(1.5)
                waiting = ledger.count()
                await replies.aclose()
        return waiting

    with FakeServer(latency=0.001) as server:
        assert asyncio.run(run(server.url)) <= 4 * teacher_module.CHUNK + 8 + 8 + 1


def test_an_async_source_and_an_error_in_it(tmp_path):
    async def source():
        for number in range(30):
            await asyncio.sleep(0)
            yield question(number)
        raise ValueError("row 30 is broken")

    with FakeServer(latency=0.02) as server:
        with pytest.raises(ValueError, match="row 30 is broken"):
            ask(server.url, tmp_path / "l", source())
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.count() == server.stats()["total"] > 0


@pytest.mark.parametrize("concurrency", [1, 7, 32])
def test_as_many_in_flight_as_asked_for(tmp_path, concurrency):
    with FakeServer(latency=0.8) as server:  # long enough for all of them to be sent on a busy machine
        ask(server.url, tmp_path / "l", questions(3 * concurrency), Pace(concurrency=concurrency))
        assert server.stats()["most_in_flight"] == concurrency


def test_the_rate_is_kept(tmp_path):
    with FakeServer(latency=0.001) as server:
        began = time.monotonic()
        ask(server.url, tmp_path / "l", questions(120), Pace(concurrency=64, rpm=2400))
        took = time.monotonic() - began
        times = [at for at, _, _ in server.stats()["seen"]]
    assert took < 6  # 120 at 40 a second, and not much slower
    for first in range(0, 120, 10):
        within = [at for at in times[first:] if at < times[first] + 2]
        assert len(within) <= 2 * 40 + 40 * 0.25 + 2


@pytest.mark.slow
def test_the_rate_is_kept_over_ten_seconds(tmp_path):
    with FakeServer(latency=0.001) as server:
        ask(server.url, tmp_path / "l", questions(1100), Pace(concurrency=64, rpm=6000))
        times = [at for at, _, _ in server.stats()["seen"]]
    most = max(sum(1 for at in times[first:] if at < times[first] + 10) for first in range(0, 100))
    assert 0.9 * 1000 < most <= 1000 + 6000 / 60 * 0.25


def test_tokens_a_minute_follow_what_the_server_counts(tmp_path):
    # Some 60 tokens of input each by the server's count, and 3 of the 50 that the output may have.
    with FakeServer(latency=0.001) as server:
        began = time.monotonic()
        ask(server.url, tmp_path / "l", questions(200), Pace(concurrency=16, tpm=200 * 67 * 20))
        took = time.monotonic() - began
        assert 11_000 < sum(server.stats()["tokens"]) < 15_000
    assert 2.0 < took < 4.4  # about 3; without giving back what was not used it takes 5


def test_a_bucket_serves_in_order_and_takes_more_than_it_holds():
    async def run():
        bucket, order = Bucket(60_000), []  # 1,000 a second, 250 saved up

        async def take(name, amount):
            await bucket.take(amount)
            order.append((name, time.monotonic() - began))

        began = time.monotonic()
        names = [("a", 250), ("large", 600), *((f"small {n}", 1) for n in range(50))]
        await asyncio.gather(*(take(*name) for name in names))
        assert [name for name, _ in order] == [name for name, _ in names]
        assert 0.2 < order[1][1] < 0.4 and 0.5 < order[2][1] < 0.8  # the small ones wait for the large one's debt

        bucket.refund(10**9)
        began = time.monotonic()
        await bucket.take(250)
        assert time.monotonic() - began < 0.05 and bucket._level < 1  # no more than it holds comes back

    asyncio.run(run())


def test_no_key_and_no_server_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        server_module.open_client(None, None)
    assert server_module.open_client("http://localhost:1/v1", None).api_key == "EMPTY"
    assert host_of("https://user:password@Example.com:8000/v1/") == "example.com:8000/v1"


def test_without_aiohttp_httpx2_does_it(tmp_path, monkeypatch):
    def missing(**_):
        raise RuntimeError("install the extra")

    monkeypatch.setattr(server_module.openai, "DefaultAioHttpClient", missing)
    faults = [{"match": "q5", "times": 1, "close": "rst"}, {"match": "q9", "times": 1, "drip": 0.2}]
    with FakeServer(latency=0.4, faults=faults) as server:
        replies, stopped = ask(server.url, tmp_path / "l", questions(200), Pace(concurrency=64, deadline=1.9))
        assert server.stats()["most_in_flight"] == 64
    assert stopped is None and len(replies) == 200 and not any(reply.error for reply in replies.values())


def test_progress_says_what_happens(tmp_path, capsys):
    async def run(url):
        caps = Caps(max_cost=9, prices=Prices(10, 20))
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(
                ledger, base_url=url, api_key=KEY, pace=Pace(concurrency=8), caps=caps, show_progress=True
            ) as teacher:
                for total in (200, 300):
                    async for request, _ in teacher.ask(questions(total), total=total):
                        teacher.progress.rejected += asked(request) == "q7"

    fault = {"match": "q250", "status": 400}
    with FakeServer(latency=0.05, faults=[fault]) as server:
        asyncio.run(run(server.url))
    lines = capsys.readouterr().err.replace("\r", "\n").strip().split("\n")
    first, last = (next(line for line in lines[::-1] if f"{n}/{n} " in line) for n in (200, 300))
    assert "done 200, cached 0, failed 0, rejected 1" in first and "req/min" in first and "tok/min" in first
    assert "done 99, cached 200, failed 1, rejected 1" in last and "/$9.00" in last


def test_one_at_a_time(tmp_path):
    async def run(url):
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY) as teacher:
                replies = teacher.ask([Request(question(1).body)])
                await anext(replies)
                with pytest.raises(ValueError, match="one `ask` at a time"):
                    await anext(teacher.ask([question(2)]))
                await replies.aclose()
                assert [asked(request) async for request, _ in teacher.ask([question(2)])] == ["q2"]

    with FakeServer() as server:
        asyncio.run(run(server.url))
