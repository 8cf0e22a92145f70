"""How runs of `llava generate` begin and end: on top of others, beside others, and before their time."""

import asyncio
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_generation.batch import BatchPace, BatchTeacher
from data_generation.failures import RunStopped
from data_generation.ledger import Ledger, LedgerInUse
from data_generation.ledger_copy import copy_ledger
from data_generation.limits import Pace
from data_generation.teacher import Teacher
from recipes.cli import main as llava
from recipes.generating import generate_run
from recipes.generating.generate_run import is_same_model
from tests.asking import KEY, ask, question, questions
from tests.openai_server import FakeServer
from tests.teaching import TeacherServer, draw_coco, write
from tests.test_generate import rows_of


ROOT = Path(__file__).parent.parent
PAGE = "<!DOCTYPE html>\n<html><head><title>My\n portal</title></head><body>Welcome</body></html>"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def flags_of(folder: Path, out: Path, *more: str, count: int = 3) -> list[str]:
    return ["generate", *draw_coco(folder, count), "--model", "m", "--server", "ours", "--out", str(out), *more]


def test_what_is_wanted_again_while_the_source_ends_is_asked(tmp_path):
    def slow_to_end():
        yield question("a")
        time.sleep(0.3)  # meanwhile the stored reply has been handled

    async def run(url: str) -> list[str]:
        with Ledger(tmp_path / "l") as ledger:
            async with Teacher(ledger, base_url=url, api_key=KEY) as teacher:
                found = []
                async for request, _ in teacher.ask(slow_to_end()):
                    found.append(request.tag)
                    if request.tag == "a":
                        teacher.again(question("b"))
                return found

    with FakeServer() as server:
        ask(server.url, tmp_path / "l", [question("a")])
        assert asyncio.run(asyncio.wait_for(run(server.url), 30)) == ["a", "b"]


# -- another source --


def test_another_source_does_not_take_the_place_of_a_data_set(tmp_path, capsys):
    out, kinds = tmp_path / "o", ["--kinds", "detail"]
    with TeacherServer() as server:
        url = ["--base-url", server.url]
        assert llava([*flags_of(tmp_path / "a", out, *kinds), *url]) == 0
        rows, paid = rows_of(out), server.stats()["requests"]

        # The same kind of source with other pictures, and another source altogether.
        other = flags_of(tmp_path / "b", out, *kinds)
        for name in ("captions.json", "instances.json"):
            file = tmp_path / "b" / name
            file.write_text(re.sub(r'"(\d+\.png)"', r'"other-\1"', file.read_text()))
        for picture in (tmp_path / "b" / "pictures").iterdir():
            picture.rename(picture.with_name(f"other-{picture.name}"))
        lines = [{"id": "1", "image": "pictures/other-000000000001.png", "captions": ["A shape on paper."]}]
        (tmp_path / "b" / "scenes.jsonl").write_text(json.dumps(lines[0]))
        jsonl = ["generate", "--source", "jsonl", "--data", f"{tmp_path / 'b' / 'scenes.jsonl'}", "--model", "m"]
        jsonl += ["--server", "ours", "--out", str(out), *kinds]
        asking = [[], ["--count", "detail=2"], ["--limit", "1"], ["--reparse"]]
        asking += [["--transport", "batch"], ["--transport", "export", "--file", f"{tmp_path / 'r.jsonl'}"]]
        for more in asking:
            assert llava([*other, *more, *url]) == 1
            error = capsys.readouterr().err
            assert "holds a data set made from the source `coco`" in error and "no picture in common" in error
        assert llava([*jsonl, *url]) == 1
        error = capsys.readouterr().err
        assert "and this run, from `scenes`, would replace it" in error and "--source-name coco" in error
        assert server.stats()["requests"] == paid and rows_of(out) == rows

        # Looking is allowed, and so is less of the same source, and the other one where the data set is given up.
        assert llava([*other, "--dry-run"]) == 0 == llava([*jsonl, "--show-prompt"])
        assert llava([*flags_of(tmp_path / "c", out, *kinds, "--limit", "1"), *url]) == 0 and len(rows_of(out)) == 1
        for build in (out / "data").iterdir():
            build.rename(tmp_path / build.name)
        assert llava([*jsonl, *url]) == 0 and [row["source"] for row in rows_of(out)] == ["scenes"]


def test_a_readme_of_somebody_else_is_not_written_over(tmp_path, capsys):
    out = tmp_path / "o"
    out.mkdir()
    (out / "README.md").write_text("# My pictures\n")
    with TeacherServer() as server:
        command = [*flags_of(tmp_path / "a", out, "--kinds", "detail"), "--base-url", server.url]
        assert llava(command) == 1
        assert f"`{out}/README.md` is no card of `llava generate`" in capsys.readouterr().err
        assert server.stats()["requests"] == 0 and [file.name for file in out.iterdir()] == ["README.md"]
        (out / "README.md").rename(out / "about.md")
        assert llava(command) == 0 and llava(command) == 0


# -- fatal stops --


def reparse_command(words: str) -> list[str]:
    command = shlex.split(words.rpartition("A data set of them: ")[2].strip())
    assert command[:2] == ["llava", "generate"] and command[-1] == "--reparse"
    return command[1:]


def test_a_key_refused_midway_ends_with_the_command_that_writes_what_there_is(tmp_path, capsys):
    out = tmp_path / "o o"
    with TeacherServer(faults=[{"match": "number 3 ", "status": 401}]) as server:
        flags = flags_of(tmp_path, out, "--base-url", server.url, "--concurrency", "1", count=5)
        assert llava(flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "401" in error and "9 answers are stored" in error and not (out / "README.md").exists()
    assert llava(reparse_command(error)) == 0
    assert len(rows_of(out)) == 9


def test_what_ends_before_an_answer_names_no_data_set_and_secrets_are_not_repeated(tmp_path, capsys):
    with TeacherServer(faults=[{"status": 401}]) as server:
        assert llava(flags_of(tmp_path / "a", tmp_path / "o", "--base-url", server.url)) == 1
    error = capsys.readouterr().err
    assert "--reparse" not in error and "The same command begins again." in error
    with TeacherServer(faults=[{"match": "number 2 ", "status": 401}]) as server:
        more = ["--base-url", server.url, "--extra", '{"user": "hidden"}', "--concurrency", "1"]
        assert llava(flags_of(tmp_path / "b", tmp_path / "p", *more)) == 1
    error = capsys.readouterr().err
    assert "With --reparse too" in error and "hidden" not in error


def test_a_password_in_the_address_is_said_at_once_and_not_repeated(tmp_path, capsys):
    # aiohttp refuses it beside a key, request by request, after eight tries of each.
    assert llava(flags_of(tmp_path, tmp_path / "o", "--base-url", "http://me:hidden@127.0.0.1:9/v1")) == 1
    error = capsys.readouterr().err
    assert "has a name or password in it" in error and "hidden" not in error


# -- beside a run --


def test_a_dry_run_of_a_source_without_a_usable_image_fails_as_the_run_would(tmp_path, capsys):
    (tmp_path / "scenes.jsonl").write_text('{"id": "1", "image": "gone.jpg", "captions": ["A cat."]}\n' * 2)
    words = ["generate", "--source", "jsonl", "--data", str(tmp_path / "scenes.jsonl"), "--model", "m"]
    assert llava([*words, "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert "missing-file" in out
    assert "error: No image of the source can be asked about, for the reasons above" in err


def test_a_dry_run_counts_what_a_run_that_is_on_has_been_answered(tmp_path, capsys):
    out = tmp_path / "o"
    with TeacherServer(latency=0.3) as server:
        flags = flags_of(tmp_path, out, "--kinds", "detail", count=60)
        command = [sys.executable, "-m", "recipes.cli", *flags, "--base-url", server.url, "--concurrency", "2"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while server.stats()["total"] < 8:
            assert process.poll() is None
            time.sleep(0.02)
        assert llava([*flags, "--dry-run"]) == 0
        shown = capsys.readouterr()
        assert llava([*flags, "--reparse"]) == 1
        assert "another process is using this ledger" in capsys.readouterr().err
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    lines = dict(line.split(": ", 1) for line in shown.out.splitlines() if ": " in line)
    asked, answered = (int(lines[name].split()[0].strip(",")) for name in ("requests", "answered already"))
    assert "A run is on" in shown.out and asked + answered == 60 and 6 <= answered <= 50
    assert "maybe billed" not in shown.err
    # The copy took nothing from the run, which was interrupted and says what to do.
    assert process.returncode == 130
    assert llava(reparse_command(told.splitlines()[-1])) == 0
    assert answered <= len(rows_of(out)) < 60


def test_copies_of_a_ledger_that_is_written_to_are_whole(tmp_path):
    """Of what was stored when the copy began nothing may lack, over many beginnings of SQLite's log."""
    code = """
import asyncio, os, sys
from data_generation.ledger import Attempt, Ledger
from data_generation.exchange import Usage
async def main():
    with Ledger(sys.argv[1]) as ledger:
        for number in range(10**6):
            keys = [f"{number * 40 + k:032x}" for k in range(40)]
            await asyncio.gather(*(ledger.put(Attempt(key, "answer", Usage(1, 1), os.urandom(2000))) for key in keys))
            print(number * 40 + 40, flush=True)
asyncio.run(main())
"""
    path = tmp_path / "l.sqlite"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        stored, copies = 0, 0
        while copies < 5:
            for _ in range(20):
                stored = int(process.stdout.readline())
            (tmp_path / f"{copies}").mkdir()
            with Ledger(copy_ledger(path, tmp_path / f"{copies}")) as copy:
                assert copy.count() >= stored
                assert copy._wait(lambda db: db.execute("pragma integrity_check").fetchone()) == ("ok",)
            copies += 1
        with pytest.raises(LedgerInUse):
            Ledger(path)
        process.kill()
    assert stored > 2000


# -- answers of another model --


@pytest.mark.parametrize(
    "asked, said, is_same",
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("Qwen/Qwen3-8B", "/models/qwen3-8b/", True),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-80B", False),
        ("m", "", False),
    ],
)
def test_names_of_one_model(asked, said, is_same):
    assert is_same_model(asked, said) == is_same


def test_answers_that_another_model_gave_are_told(tmp_path, capsys):
    requests, answers, out = tmp_path / "r.jsonl", tmp_path / "a.jsonl", tmp_path / "o"
    flags = flags_of(tmp_path, out, "--kinds", "detail")
    assert llava([*flags, "--transport", "export", "--file", str(requests)]) == 0
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    with answers.open("w") as file:
        for line, model in zip(lines, ("m", "m-2024-08-06", "n"), strict=True):
            message = {"role": "assistant", "content": write(line["body"]["messages"])}
            body = {"model": model, "choices": [{"finish_reason": "stop", "message": message}]}
            file.write(json.dumps({"custom_id": line["custom_id"], "response": {"body": body}}) + "\n")
    capsys.readouterr()
    assert llava([*flags, "--transport", "import", "--file", str(answers)]) == 0
    told = capsys.readouterr().out
    assert "warning: --model is m, and 1 answers say they are by n." in told
    assert [row["model"] for row in rows_of(out)] == ["m", "m-2024-08-06", "n"]
    assert "- model: m; the server said m, m-2024-08-06, n" in (out / "README.md").read_text()


# -- no endpoint --


def test_a_web_page_instead_of_the_first_answer_ends_the_run_at_once_and_unpaid(tmp_path):
    with FakeServer(faults=[{"raw": PAGE, "type": "text/html"}]) as server:
        replies, stopped = ask(server.url, tmp_path / "l", questions(5))
        assert server.stats()["requests"] == 1
    assert stopped is not None and stopped.reason == "no_endpoint" and replies == {}
    assert "a web page, `My portal`. This is no OpenAI endpoint." in str(stopped)
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.spent.requests == ledger.spent.maybe_requests == 0


def test_a_web_page_between_answers_is_a_proxys(tmp_path):
    with FakeServer(faults=[{"match": "q3", "times": 1, "raw": PAGE}, {"match": "q4", "raw": PAGE}]) as server:
        replies, stopped = ask(server.url, tmp_path / "l", questions(5), Pace(concurrency=1, attempts=2))
    assert stopped is None and replies["q3"].text == "answer to q3"
    assert (
        replies["q4"].error == "unusable" and replies["q4"].detail == "the server's reply is a web page, `My portal`"
    )


def test_batches_find_a_web_page_too(tmp_path):
    async def run(url: str) -> None:
        with Ledger(tmp_path / "l") as ledger:
            async with BatchTeacher(ledger, tmp_path / "b", base_url=url, api_key=KEY, pace=BatchPace()) as batches:
                await batches.fill(questions(2))

    class Portal(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RunStopped, match="a web page, `My portal`. This is no OpenAI endpoint"):
            asyncio.run(run(f"http://127.0.0.1:{server.server_port}/v1"))
        server.shutdown()


# -- passes --


def test_with_numbers_the_source_is_read_three_times(tmp_path, monkeypatch):
    reads = []
    source_of = generate_run.open_source

    def counted(args):
        source = source_of(args)

        def read(counts):
            reads.append(1)
            return source.read(counts)

        return source.__class__(source.name, source.root, read)

    monkeypatch.setattr(generate_run, "open_source", counted)
    with TeacherServer() as server:
        flags = flags_of(tmp_path / "a", tmp_path / "o", "--kinds", "detail", "--base-url", server.url)
        assert llava([*flags, "--count", "detail=2"]) == 0 and len(reads) == 3
        assert llava([*flags, "--count", "detail=2"]) == 0 and len(reads) == 6
        assert llava(flags) == 0 and len(reads) == 9
