"""The teacher's server, through the real `openai` client and through our own."""

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from data_generation.batch import BatchPace, BatchTeacher
from data_generation.microworld.source import read_microworld
from data_generation.microworld.teacher.completion import MODEL, complete
from data_generation.microworld.teacher.faults import Chances, Faults
from data_generation.microworld.teacher.server import TeacherServer, running_teacher
from data_generation.parsing import parse
from data_generation.prompting import load_prompt
from data_generation.rejections import Counts
from data_generation.teacher import Ledger, Pace, Request, Teacher, stored_replies
from recipes import cli, teacher


ROOT = Path(__file__).parent.parent
PROMPT = load_prompt("conversation")


def bodies(count):
    images = read_microworld(Counts(), "train", count, side=24)
    return [{"model": MODEL, "messages": PROMPT.messages(image)} for image in images]


@pytest.fixture(scope="module")
def client():
    with running_teacher() as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_it_answers_chat_completions(client):
    (body,) = bodies(1)
    answer = client.chat.completions.create(**body)
    assert answer.model_dump(exclude_unset=True) == complete(body)
    assert parse("conversation", answer.choices[0].message.content, answer.choices[0].finish_reason)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 500
    assert [model.id for model in client.models.list()] == [MODEL] == [client.models.retrieve(MODEL).id]


def test_it_streams_the_same_answer(client):
    (body,) = bodies(1)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    whole = complete(body)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 10 and chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == whole["usage"]["completion_tokens"] and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**body, stream=True))


def test_errors_are_those_of_the_api(client):
    hello = [{"role": "user", "content": "Hello!"}]
    with pytest.raises(openai.NotFoundError, match="Ask for `microworld`"):
        client.chat.completions.create(model="gpt-4", messages=hello)
    with pytest.raises(openai.BadRequestError, match="what to write"):
        client.chat.completions.create(model=MODEL, messages=hello)
    with pytest.raises(openai.NotFoundError, match="no POST /v1/embeddings"):
        client.embeddings.create(model=MODEL, input="x")
    for fetch in (client.files.retrieve, client.files.content, client.batches.retrieve):
        with pytest.raises(openai.NotFoundError, match="There is no"):
            fetch("nothing")
    connection = http.client.HTTPConnection(urlsplit(str(client.base_url)).netloc)
    for sent, message in (("{", "is no JSON"), ("[]", "wanted a JSON object"), ("null", "wanted a JSON object")):
        connection.request("POST", "/v1/chat/completions", sent)  # three over one connection
        answer = connection.getresponse()
        assert answer.status == 400 and message in json.load(answer)["error"]["message"]
    connection.request("GET", "/v1/models", headers={"Connection": "close"})
    assert connection.getresponse().read()
    connection.close()


def wait_for(client, batch):
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed", "cancelled") and time.monotonic() < deadline:
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def start_batch(client, lines):
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content, "application/jsonl"), purpose="batch")
    assert client.files.content(file.id).content == content and file.bytes == len(content)
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"part": "1"}
    )


def line(name, body):
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_batches_give_the_same_answers(client):
    wanted = {f"row-{number}": body for number, body in enumerate(bodies(5))}
    bad = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
    lines = [line(name, body) for name, body in (wanted | {"bad": bad}).items()]
    batch = wait_for(client, start_batch(client, lines))
    assert batch.status == "completed" and batch.metadata == {"part": "1"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (6, 5, 1)
    rows = [json.loads(row) for row in client.files.content(batch.output_file_id).text.splitlines()]
    assert {row["custom_id"]: row["response"]["body"] for row in rows} == {k: complete(b) for k, b in wanted.items()}
    (refused,) = [json.loads(row) for row in client.files.content(batch.error_file_id).text.splitlines()]
    assert refused["custom_id"] == "bad" and refused["response"]["status_code"] == 400
    other = wait_for(client, start_batch(client, lines[:1]))
    # Pages of one; a server that begins each anew would never come to an end.
    listed = [found.id for found in itertools.islice(client.batches.list(limit=1), 99)]
    assert listed[:2] == [other.id, batch.id] and len(set(listed)) == len(listed)
    names = [file.id for file in itertools.islice(client.files.list(purpose="batch", limit=1), 99)]
    assert len(set(names)) == len(names)
    assert batch.input_file_id in names and batch.output_file_id not in names
    assert client.files.delete(batch.output_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(batch.output_file_id)


def test_odd_batches_fail_with_what_is_wrong(client):
    (body,) = bodies(1)
    elsewhere = line("b", body) | {"url": "/v1/embeddings"}
    batch = wait_for(client, start_batch(client, [line("a", body), line("a", body), elsewhere, {"custom_id": "c"}]))
    found = [(error.code, error.line) for error in batch.errors.data]
    assert batch.status == "failed" and batch.output_file_id is None
    assert found == [("duplicate_custom_id", 2), ("invalid_url", 3), ("invalid_json_line", 4)]
    with pytest.raises(openai.BadRequestError, match="only those for"):
        client.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/embeddings", completion_window="24h")


def test_a_cancelled_batch_keeps_what_is_done(client):
    batch = start_batch(client, [line(str(number), body) for number, body in enumerate(bodies(2) * 300)])
    cancelled = wait_for(client, client.batches.cancel(batch.id))
    assert cancelled.status == "cancelled" and cancelled.request_counts.completed < 600
    rows = client.files.content(cancelled.error_file_id).text.splitlines()
    assert json.loads(rows[-1])["error"]["code"] == "batch_cancelled"


def ask_all(url, path, requests, pace):
    async def run():
        with Ledger(path) as ledger:
            async with Teacher(ledger, base_url=url, pace=pace) as teacher:
                return {request.tag: reply async for request, reply in teacher.ask(requests)}

    return asyncio.run(run())


def test_faults_met_by_our_client_end_in_all_answers(tmp_path):
    server = TeacherServer(3, Chances(0.1, 0.1, 0.05, 0.1, 0.1), retry_after=0.05, delay=0.1)
    requests = [Request(body, tag=str(number)) for number, body in enumerate(bodies(60))]
    with running_teacher(server=server) as url:
        replies = ask_all(url, tmp_path / "ledger.sqlite", requests, Pace(concurrency=8, deadline=20))
    assert len(replies) == 60 and not [reply for reply in replies.values() if reply.error]
    for request in requests:
        assert replies[request.tag].text == complete(request.body, 3)["choices"][0]["message"]["content"]
    assert set(server.faults.met) == {"throttled", "failed", "slow", "cut", "dropped"}
    assert server.num_answers == 60 + server.faults.met["cut"]


def test_faults_come_by_seed_and_chance():
    chances = Chances(throttled=0.2, dropped=0.3)
    first, second, other = Faults(chances, 1), Faults(chances, 1), Faults(chances, 2)
    drawn = [first.next() for _ in range(2000)]
    assert drawn == [second.next() for _ in range(2000)] != [other.next() for _ in range(2000)]
    assert (
        350 < drawn.count("throttled") < 450
        and 530 < drawn.count("dropped") < 670
        and set(drawn)
        == {
            "throttled",
            "dropped",
            None,
        }
    )
    with pytest.raises(ValueError, match="together at most 1"):
        Chances(failed=0.6, slow=0.6)


@pytest.mark.parametrize(
    "chances, error", [(Chances(throttled=1), openai.RateLimitError), (Chances(failed=1), openai.InternalServerError)]
)
def test_a_fault_looks_like_the_real_one(chances, error):
    with running_teacher(server=TeacherServer(chances=chances, retry_after=2)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(error) as met:
            client.chat.completions.create(**bodies(1)[0])
        assert met.value.response.headers.get("retry-after") == ("2" if chances.throttled else None)
        client.close()


@pytest.mark.parametrize("chances", [Chances(cut=1), Chances(dropped=1)])
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_lost_connection_is_no_answer(chances, is_stream):
    with running_teacher(server=TeacherServer(chances=chances)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(Exception, match=r"[Cc]onnection|closed|incomplete|disconnected"):  # noqa: B017
            list(client.chat.completions.create(**bodies(1)[0], stream=is_stream))
        client.close()


def test_our_batch_client_fills_a_ledger(tmp_path):
    requests = [Request(body, tag=str(number)) for number, body in enumerate(bodies(6))]

    async def fill(url):
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            async with BatchTeacher(
                ledger, tmp_path / "batches", base_url=url, pace=BatchPace(requests=4, poll=0.05)
            ) as teacher:
                tally = await teacher.fill(requests)
                return tally, list(stored_replies(ledger, requests, teacher.host))

    with running_teacher() as url:
        tally, found = asyncio.run(fill(url))
    assert tally.answered == 6 and tally.is_complete and not tally.failed
    assert all(reply.text == complete(request.body)["choices"][0]["message"]["content"] for request, reply in found)


def test_the_commands_work_together(tmp_path, capsys):
    command = [sys.executable, "-m", "recipes.cli", "teacher", "--port", "0", "--failed", "0.1"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process,
        contextlib.ExitStack() as open_still,
    ):
        try:
            url = process.stdout.readline().split(" at ")[1].split()[0]
            connection = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port))
            open_still.enter_context(connection).sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
            assert connection.recv(8) == b"HTTP/1.1"
            flags = ["--model", MODEL, "--base-url", url, "--source", "microworld", "--limit", "6", "--split", "test"]
            out = tmp_path / "data"
            assert cli.main(["generate", *flags, "--out", str(out), "--duplicates", "keep"]) == 0, (
                capsys.readouterr().err
            )
        finally:
            process.send_signal(2)
            rest = process.stdout.read()
    assert "18 answers, 0 refused" in rest and "Traceback" not in rest
    assert any(out.rglob("*.parquet"))


def test_a_source_without_end_needs_one(tmp_path, capsys):
    flags = ["generate", "--model", MODEL, "--source", "microworld", "--out", str(tmp_path / "out")]
    assert cli.main(flags) == 1 and "Say how many pictures with --limit" in capsys.readouterr().err
    assert cli.main([*flags, "--limit", "3", "--split", "dev"]) == 1
    assert "no split `dev`" in capsys.readouterr().err
    assert cli.main(["teacher", "--slow", "0.7", "--cut", "0.7"]) == 1
    assert "together at most 1" in capsys.readouterr().err


def test_a_port_that_there_is_not_is_told():
    with pytest.raises(ValueError, match="Port 99999 cannot be had .* Take another"):
        teacher.main(["--port", "99999"])
