"""What a careless user does to `llava generate`, and what is said then."""

import asyncio
import json
import random
import socket
import time
from pathlib import Path

import pytest

from data_generation.batch_transfer import import_answers
from data_generation.budget import Budget, Caps
from data_generation.captions import Pairs
from data_generation.exchange import Usage
from data_generation.ledger import Ledger
from data_generation.limits import Pace, Pause
from data_generation.llava_json import read_llava, write_llava
from data_generation.rejections import Counts
from data_generation.server import host_of, open_client
from data_generation.tables import read_jsonl
from data_generation.teacher import Teacher
from recipes import generate
from recipes.cli import main as llava
from tests.asking import KEY, ask, question, questions
from tests.openai_server import FakeServer
from tests.teaching import TeacherServer, draw_coco


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize(
    "address", ["localhost:8000/v1", "", "ftp://a/v1", "http://", "http://127.0.0.1:abc/v1", "http://u:secret@:1x/v1"]
)
def test_an_odd_address_is_said_at_once(address):
    with pytest.raises(ValueError, match="the server's address") as error:
        host_of(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("odd", ["sk-0123456789\n", " ", "sk-0123456789é", "sk-0123456789 sk-2"])
def test_an_odd_key_is_said_without_saying_it(odd, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", odd)
    with pytest.raises(ValueError, match="the key has blanks") as error:
        open_client("http://127.0.0.1:9/v1", None)
    assert "0123" not in str(error.value)


def blackhole() -> tuple[socket.socket, list[socket.socket]]:
    """A port that takes no connection and refuses none."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    waiting = [socket.socket() for _ in range(3)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(listening.getsockname())
    return listening, waiting


@pytest.mark.parametrize("is_refused", [True, False])
def test_nobody_there_is_said_soon_and_costs_nothing(tmp_path, monkeypatch, is_refused):
    monkeypatch.setattr("data_generation.asking.FIRST_WAIT", 1.0)
    monkeypatch.setattr("data_generation.server.CONNECT", 1.0)
    listening, waiting = blackhole()
    port = 9 if is_refused else listening.getsockname()[1]
    began = time.monotonic()
    _, stopped = ask(f"http://127.0.0.1:{port}/v1", tmp_path / "l", questions(3), Pace(attempts=100))
    for one in (listening, *waiting):
        one.close()
    assert stopped is not None and stopped.reason == "unreachable" and "does it run?" in str(stopped)
    assert time.monotonic() - began < 6
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.spent.maybe_requests == 0


def test_the_bar_grows_with_what_is_asked_again(tmp_path):
    async def run(url: str) -> int:
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY, show_progress=True) as teacher:
                async for request, _ in teacher.ask([question("a")], total=1):
                    if request.sample == 0 and request.tag == "a":
                        teacher.again(question("b"))
                return teacher.progress._bar.total

    with FakeServer() as server:
        assert asyncio.run(run(server.url)) == 2


def test_a_pause_that_begins_while_another_ends_holds(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)

    async def run() -> float:
        pause = Pause()
        pause.hit(time.monotonic(), 0.05)
        waiting = asyncio.create_task(pause.over())
        await asyncio.sleep(0.1)  # `waiting` is in its random part now
        pause.hit(time.monotonic(), 0.5)
        await waiting
        return pause.left()

    assert asyncio.run(run()) <= 0


def test_what_could_not_be_stored_counts_as_maybe_billed(tmp_path):
    async def fail(attempt):
        raise OSError("the disk is full")

    async def run(url: str) -> None:
        with Ledger(tmp_path / "l") as ledger:
            ledger.put = fail
            async with Teacher(ledger, base_url=url, api_key=KEY) as teacher:
                async for _ in teacher.ask(questions(1)):
                    pass

    with FakeServer() as server, pytest.raises(OSError, match="disk is full"):
        asyncio.run(run(server.url))
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.spent.maybe_requests == 1 and ledger.spent.maybe_output > 0


def test_after_all_was_stored_nothing_is_held(tmp_path):
    async def run() -> None:
        with Ledger(tmp_path / "l") as ledger:
            budget = Budget(Caps(), ledger)
            budget.release(await budget.reserve(Usage(5, 5)))
            await budget.close()

    asyncio.run(run())
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.spent.maybe_requests == 0


def rows(path: Path, *found: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_half_a_letter_or_an_endless_number_costs_one_row(tmp_path):
    draw_coco(tmp_path, 1)
    good = {"id": "a/b _c", "image": "pictures/000000000000.png", "captions": ["A dog."]}
    odd = [
        {"id": "\ud800"},
        {"id": "1", "width": 10**400, "height": 9},
        {"id": "2", "width": float("nan"), "height": 9},
    ]
    data = rows(tmp_path / "d.jsonl", good, *(good | change for change in odd))
    counts = Counts()
    assert [image.id for image in read_jsonl(counts, data)] == ["a/b _c"]
    assert counts.rejected == {"bad-unicode": 1, "odd-size": 2}
    str(counts).encode()


def test_captions_with_half_a_letter_cost_one_pair(tmp_path):
    good = {"key": "1", "image": "a.jpg", "caption": "A dog."}
    data = rows(tmp_path / "d.jsonl", good, good | {"key": "\ud800"}, good | {"image": "\ud800"})
    with data.open("a") as file:
        file.write(json.dumps(good | {"image": {"bytes": "no bytes"}}) + "\n")
    counts = Counts()
    assert list(Pairs(data, id="key").captions(counts)) == [(0, "A dog.")]
    assert counts.rejected == {"bad-unicode": 2, "no-picture": 1}


@pytest.mark.parametrize("pattern", ["a.jpg", "{}{}.jpg", "{name}.jpg", "{", "{:q}", "{0.x}"])
def test_an_odd_pattern_is_said(tmp_path, pattern):
    with pytest.raises(ValueError, match="no place for a number"):
        Pairs(tmp_path, pattern=pattern)


ODD_FLAGS = {
    "an odd limit of tokens": (["--extra", '{"max_completion_tokens": "abc"}'], "wanted a whole number"),
    "a temperature that is none": (["--temperature", "nan"], "wanted a number, 0 or more"),
    "a license of several words": (["--license", "a: b"], "such as cc-by-4.0"),
}


@pytest.mark.parametrize("flags, error", ODD_FLAGS.values(), ids=ODD_FLAGS)
def test_odd_flags_are_said_before_anything_is_sent(tmp_path, capsys, flags, error):
    pictures = draw_coco(tmp_path, 1)
    out = ["--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--out", f"{tmp_path / 'o'}"]
    with pytest.raises((ValueError, SystemExit)) as stopped:
        generate.main([*pictures, *out, *flags])
    assert error in f"{stopped.value}{capsys.readouterr().err}" and not (tmp_path / "o").exists()


def run(tmp_path: Path, server: TeacherServer, *more: str, limit: int = 2) -> int:
    pictures = draw_coco(tmp_path / f"{len(list(tmp_path.iterdir()))}", limit)
    out = ["--out", str(tmp_path / "o")]
    return llava(["generate", *pictures, "--model", "m", "--base-url", server.url, *out, *more])


def test_money_for_nothing_is_said_as_such(tmp_path, capsys):
    with TeacherServer() as server:
        prices = ["--price-input", "1", "--price-output", "1"]
        assert run(tmp_path, server, "--max-cost", "0.000001", *prices) == 1
        assert server.stats()["total"] == 0
    error = capsys.readouterr().err
    assert "max_cost" in error and "Raise the cap to go on" in error and ".." not in error.split("error:")[1]


def test_paths_of_pictures_that_have_none_are_said_before_anything_is_paid(tmp_path, capsys):
    flags = ["--source", "microworld", "--limit", "1", "--images", "paths", "--out", str(tmp_path / "o")]
    with TeacherServer() as server:
        assert llava(["generate", *flags, "--model", "m", "--base-url", server.url]) == 1
        assert server.stats()["requests"] == 0
    assert "Embed them" in capsys.readouterr().err


def test_a_limit_is_what_is_looked_at(tmp_path, capsys):
    with TeacherServer() as server:
        assert run(tmp_path, server, "--limit", "1", "--kinds", "detail", limit=3) == 0
    assert "images: 1 of 1 rows kept" in capsys.readouterr().out


def test_rows_that_failed_in_a_batch_say_so(tmp_path, capsys):
    draw_coco(tmp_path / "other", 2)
    captions = json.loads((tmp_path / "other" / "captions.json").read_text())["annotations"]
    asked = "\n".join(one["caption"] for one in captions if one["image_id"] == 1)  # a conversation sees captions alone
    flags = ["--transport", "batch", "--poll", "0.05", "--kinds", "conversation"]
    with TeacherServer(batches={"fail": [asked]}) as server:
        assert run(tmp_path, server, *flags) == 0
    out = capsys.readouterr().out
    assert "1 failed, http_400: 000000000001_conversation" in out
    assert "1 rejected, failed-http-400" in out and "no-answer" not in out


def test_the_file_of_the_requests_is_no_file_of_answers(tmp_path, capsys):
    with TeacherServer() as server:
        assert run(tmp_path, server, "--transport", "export", "--file", f"{tmp_path / 'r.jsonl'}") == 0
        assert run(tmp_path, server, "--transport", "import", "--file", f"{tmp_path / 'r.jsonl'}") == 1
        assert run(tmp_path, server, "--transport", "export", "--file", f"{tmp_path}") == 1
    error = capsys.readouterr().err
    assert "failed-no-response" in error and "Is this the file of the requests?" in error and "is a folder" in error
    assert not tmp_path.with_name(f"{tmp_path.name}.partial").exists()


def test_answers_that_are_there_already_are_counted_so(tmp_path):
    body = {"choices": [{"message": {"content": "a"}}]}
    line = json.dumps({"custom_id": "0" * 32, "response": {"status_code": 200, "body": body}})
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n")
    with Ledger(tmp_path / "l") as ledger:
        tally = asyncio.run(import_answers(ledger, [tmp_path / "a.jsonl"]))
    assert (tally.answered, tally.cached) == (1, 1)


PART = {"type": "text", "text": "a"}
ODD_ROWS = [
    [1],
    {"messages": ["x"]},
    {"messages": {"a": 1}},
    {"messages": [{"role": "user", "content": ["x"]}]},
    {"messages": [{"role": "user", "content": [{}]}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": [1], "content": "x"}]},
    {"messages": [{"role": "user", "content": [PART]}], "images": "a.jpg"},
    {"messages": [{"role": "user", "content": [PART, {"type": "image"}]}], "images": [{"bytes": "abc"}]},
    {"id": "\ud800", "messages": [{"role": "user", "content": [PART]}]},
]


def test_odd_rows_are_not_exported_and_end_nothing(tmp_path):
    good = {"id": "1", "messages": [{"role": "user", "content": [PART]}]}
    counts = Counts()
    assert write_llava(counts, [*ODD_ROWS, good], tmp_path / "o.json") == 1
    assert json.loads((tmp_path / "o.json").read_text()) == [
        {"id": "1", "conversations": [{"from": "human", "value": "a"}]}
    ]
    assert counts.num_rejected == len(ODD_ROWS)
    str(counts).encode()


def test_an_id_with_half_a_letter_can_be_told(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": "\ud800"}]))
    counts = Counts()
    assert list(read_llava(counts, tmp_path / "a.json")) == []
    assert "ud800" in str(counts).encode().decode()
