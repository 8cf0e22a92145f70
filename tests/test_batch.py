"""The Batch API: nothing handed in twice, nothing that was answered left behind."""

import asyncio
import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_generation.batch import BatchPace, BatchTeacher
from data_generation.batch_transfer import export_requests, import_answers
from data_generation.budget import Caps, Prices
from data_generation.failures import RunStopped
from data_generation.ledger import Ledger
from data_generation.shards import Tally
from data_generation.teacher import stored_replies
from tests.asking import KEY, ask, asked, question, questions
from tests.openai_server import FakeServer


def fill(server: FakeServer, folder: Path, count: int, caps: Caps | None = None, **pace) -> Tally:
    async def run() -> Tally:
        with Ledger(folder / "l") as ledger:
            async with BatchTeacher(
                ledger,
                folder / "batches",
                base_url=server.url,
                api_key=KEY,
                server="here",
                caps=caps,
                pace=BatchPace(**{"poll": 0.02, **pace}),
            ) as batches:
                return await batches.fill(questions(count))

    return asyncio.run(run())


def answers(folder: Path, count: int) -> dict[str, str]:
    with Ledger(folder / "l") as ledger:
        assert all(f"answer to {stored.tag}" in stored.body.decode() for stored in ledger.answers())
        found = stored_replies(ledger, questions(count), "here")
        return {asked(request): reply.text for request, reply in found if reply is not None}


def expected(count: int, *without: int) -> dict[str, str]:
    return {f"q{number}": f"answer to q{number}" for number in range(count) if number not in without}


def test_all_answers_in_batches_of_limited_size(tmp_path):
    with FakeServer(batches={"shuffle": True}) as server:
        caps = Caps(prices=Prices(1.0, 2.0).times(0.5))
        tally = fill(server, tmp_path, 100, caps, requests=30)
        stats = server.stats()
        assert (tally.answered, tally.cached, tally.failed, tally.is_complete) == (100, 0, {}, True)
        assert answers(tmp_path, 100) == expected(100)
        assert [batch["status"] for batch in stats["batches"]] == ["completed"] * 4
        assert stats["files"] == [] and list((tmp_path / "batches").iterdir()) == []  # all taken away
        assert stats["twice"] == 0
        with Ledger(tmp_path / "l") as ledger:
            tokens = stats["tokens"]
            assert [ledger.spent.input, ledger.spent.output] == tokens and ledger.spent.maybe_requests == 0
            assert ledger.spent.cost == pytest.approx((tokens[0] * 0.5 + tokens[1] * 1.0) / 1e6)

        # Answers are answers: neither a second run nor the other transport asks again.
        assert fill(server, tmp_path, 100, requests=30).cached == 100
        replies, _ = ask(server.url, tmp_path / "l", questions(100), server="here")
        assert all(reply.cached for reply in replies.values())
        assert server.stats()["total"] == 100 and len(server.stats()["batches"]) == 4


def test_what_an_expired_batch_left_undone_goes_into_the_next(tmp_path):
    # Half is done when a batch expires: 40 -> 20 -> 10 -> 5 are left, and three rounds are all.
    with FakeServer(batches={"end": "expired", "done": 0.5, "shuffle": True}) as server:
        tally = fill(server, tmp_path, 40, rounds=3)
        assert tally.answered == 35 and server.stats()["total"] == 35 and server.stats()["twice"] == 0
        assert tally.failed["batch_expired"][0] == 5 and len(tally.failed["batch_expired"][1]) == 5
        assert len(answers(tmp_path, 40)) == 35
        # Given up is not given up for ever.
        assert fill(server, tmp_path, 40, rounds=1).answered == 2


def test_refused_requests_are_counted_by_reason(tmp_path):
    with FakeServer(batches={"fail": ["q3", "q5"]}) as server:
        tally = fill(server, tmp_path, 10)
        assert tally.answered == 8 and tally.failed["http_400"][0] == 2
        assert answers(tmp_path, 10) == expected(10, 3, 5)


@pytest.mark.parametrize("close", ["rst", "fin"])
@pytest.mark.parametrize("blind", [0, 2])
def test_a_lost_answer_makes_no_second_batch(tmp_path, close, blind):
    faults = [{"path": "POST /v1/batches", "times": 1, "close": close, "billed": True}]
    with FakeServer(faults=faults, batches={"blind": blind}) as server:
        assert fill(server, tmp_path, 10).answered == 10
        stats = server.stats()
        assert len(stats["batches"]) == 1 and stats["twice"] == 0
        assert stats["batches"][0]["metadata"]["sha256"]


def test_a_batch_that_was_never_created_is_created(tmp_path):
    faults = [
        {"path": "POST /v1/batches", "times": 1, "close": "rst"},
        {"path": "POST /v1/batches", "times": 1, "status": 429, "headers": {"retry-after-ms": "30"}},
        {"path": "POST /v1/batches", "times": 1, "status": 404},
        {"path": "POST /v1/files", "times": 1, "close": "rst", "billed": True},
    ]
    with FakeServer(faults=faults) as server:
        assert fill(server, tmp_path, 10).answered == 10
        stats = server.stats()
        assert len(stats["batches"]) == 1 and stats["files"] == []


def test_no_room_for_tokens_means_waiting(tmp_path):
    with FakeServer(batches={"token_limit": 3}) as server:
        assert fill(server, tmp_path, 20, requests=10).answered == 20
        assert [batch["status"] for batch in server.stats()["batches"]] == ["failed"] * 3 + ["completed"] * 2
        assert server.stats()["twice"] == 0


def test_enqueued_tokens_are_kept(tmp_path):
    with FakeServer(batches={"polls": 2}) as server:
        fill(server, tmp_path, 40, requests=10, enqueued_tokens=1)
        calls = [path for _, path, _ in server.stats()["seen"]]
        # Too large for the limit even alone, so they go one after the other: each is fetched before the next begins.
        order = [call.split("/")[-1] for call in calls if call == "POST /v1/batches" or call.endswith("/content")]
        assert order == ["batches", "content"] * 4


def test_a_cap_on_cost_holds_batches_back(tmp_path):
    # One batch of 10 costs 0.66 dollars at these prices, at worst 4.2.
    prices = Prices(1000.0, 1000.0)
    with FakeServer(batches={"polls": 1}) as server:
        with pytest.raises(RunStopped, match="max_cost") as stopped:
            fill(server, tmp_path, 100, Caps(max_cost=6.0, prices=prices), requests=10)
        tokens = server.stats()["tokens"]
        assert stopped.value.reason == "budget" and 0 < sum(tokens) / 1000 <= 6.0
        assert len(answers(tmp_path, 100)) == server.stats()["total"]


def test_a_refused_batch_says_why(tmp_path):
    faults = [{"path": "POST /v1/files", "times": 9, "status": 401}]
    with FakeServer(faults=faults) as server, pytest.raises(RunStopped, match="OPENAI_API_KEY"):
        fill(server, tmp_path, 5)


# Children of a process with one thread: a child of this one could find locks held by threads that it does not have.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload([__name__])


class Points:
    """Kills this process after so many steps: every commit of the ledger, every answer of the server."""

    def __init__(self, left: int):
        self.left = left

    def counted(self, call):
        async def calling(*args):
            found = await call(*args)
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return calling


def fill_until(url: str, folder: Path, count: int, steps: int) -> None:
    points = Points(steps)
    Ledger.put, Ledger.do = points.counted(Ledger.put), points.counted(Ledger.do)
    BatchTeacher._call = points.counted(BatchTeacher._call)
    fill(SimpleNamespace(url=url), folder, count)


def fill_and_die(server: FakeServer, folder: Path, count: int, steps: int) -> bool:
    """In a child process; False if it came to the end before."""
    child = CLEAN.Process(target=fill_until, args=(server.url, folder, count, steps))
    child.start()
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_after_every_step_there_is_one_batch(tmp_path, stride):
    deaths = 0
    with FakeServer(batches={"end": "expired", "done": 0.7, "shuffle": True}) as server:
        before = 0
        for steps in range(1, 200, stride):
            folder = tmp_path / str(steps)
            died = fill_and_die(server, folder, 10, steps)
            fill(server, folder, 10)
            # 10 requests -> 7 answered, 3 left -> 2 answered, 1 left -> 1 answered.
            stats = server.stats()
            assert len(stats["batches"]) - before == 3, f"killed after step {steps}"
            assert answers(folder, 10) == expected(10) and stats["files"] == []
            before = len(stats["batches"])
            if not died:
                break
            deaths += 1
    assert deaths > 40 / stride


def test_killed_and_killed_again(tmp_path):
    # Eight steps a life: it still comes to its end, with one batch.
    with FakeServer() as server:
        lives = 0
        while fill_and_die(server, tmp_path, 2, 8):
            lives += 1
            assert lives < 30
        assert lives > 2 and answers(tmp_path, 2) == expected(2)
        assert len(server.stats()["batches"]) == 1 and server.stats()["twice"] == 0


def test_out_to_a_file_and_back(tmp_path):
    path, outputs = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    wanted = [*questions(20), *questions(5)]
    with Ledger(tmp_path / "l") as ledger:
        assert export_requests(ledger, wanted, "my-model", path) == (20, 0)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines[3] == {
            "custom_id": question(3).key("my-model"),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": question(3).body,
        }
        # As vLLM's run_batch answers; one was refused, one line was torn, one is not ours.
        answered = [vllm_line(line) for line in lines[:18]]
        answered[4]["response"] = {"status_code": 400, "request_id": "x", "body": {"error": {"message": "too long"}}}
        text = "".join(json.dumps(line) + "\n" for line in answered[::-1])
        outputs.write_text(text + json.dumps(vllm_line(lines[18]))[:60] + '\n{"custom_id": "request-1"}\n')
        tally = asyncio.run(import_answers(ledger, [outputs]))
        assert tally.answered == 17 and tally.failed["http_400"] == [1, [question(4).key("my-model")]]
        assert tally.failed["unreadable"][0] == 2 and "answers.jsonl:19" in tally.failed["unreadable"][1][0]
        assert "32 hex digits" in tally.failed["unreadable"][1][1]
        spent = ledger.spent
        asyncio.run(import_answers(ledger, [outputs]))
        assert ledger.spent == spent and spent.requests == 17
        assert export_requests(ledger, wanted, "my-model", path) == (3, 21)
        replies = dict((asked(r), reply) for r, reply in stored_replies(ledger, questions(20), "my-model"))
    assert replies["q7"].text == "answer to q7" and replies["q4"] is None


def vllm_line(line: dict) -> dict:
    message = {"role": "assistant", "content": f"answer to {line['body']['messages'][-1]['content']}"}
    body = {
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }
    response = {"status_code": 200, "request_id": "x", "body": body}
    return {"id": "vllm-1", "custom_id": line["custom_id"], "response": response, "error": None}
