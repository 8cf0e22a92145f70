"""`llava generate` from drawn pictures to rows that train, against a teacher in its own process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset

from recipes import generate
from recipes.cli import main as llava
from recipes.training.train_data import load_rows
from tests import training
from tests.teaching import TeacherServer, draw_coco, says


ROOT = Path(__file__).parent.parent
KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def server():
    with TeacherServer() as server:
        yield server


def rows_of(folder: Path) -> list[dict]:
    return load_rows(str(folder)).to_list()


def text(row: dict) -> str:
    return json.dumps(row["messages"])


def run(flags: list[str], server: TeacherServer, out: Path, *more: str) -> list[dict]:
    generate.main([*flags, "--model", "m", "--base-url", server.url, "--out", str(out), *more])
    return rows_of(out)


def asked(server: TeacherServer) -> int:
    return server.stats()["requests"]


def test_from_pictures_to_a_step_of_training(tmp_path, server):
    flags = draw_coco(tmp_path)
    rows = run(flags, server, tmp_path / "data")
    assert len(rows) == 36 == len({row["id"] for row in rows})
    assert [row["id"] for row in rows[:4]] == [
        "000000000000_conversation",
        "000000000000_detail",
        "000000000000_reasoning",
        "000000000001_conversation",
    ]
    first = rows[0]
    assert (first["kind"], first["source"], first["image_id"]) == ("conversation", "coco", ["000000000000"])
    assert (first["model"], len(first["prompt_version"]), len(first["request_key"])) == ("m", 12, 32)
    assert first["messages"][0]["content"][0]["type"] == "image" and len(first["messages"]) == 4
    # Every row holds the file of its own picture and words about it.
    for row in rows:
        number = int(row["image_id"][0])
        assert f"number {number} " in text(row)
        assert row["images"][0]["bytes"] == (tmp_path / "pictures" / f"{number:012d}.png").read_bytes()
    plain = load_dataset(str(tmp_path / "data"))["train"]
    assert plain.num_rows == 36 and plain[35]["images"][0].size == (60, 60)

    training.write_start(tmp_path / "start")
    log = training.run(
        tmp_path,
        model_name_or_path=str(tmp_path / "start"),
        data=[str(tmp_path / "data")],
        output_dir=str(tmp_path / "trained"),
        max_length=1024,
        max_steps=1,
    )
    assert log is not None


def test_nothing_is_asked_twice_and_a_changed_prompt_is_asked_anew(tmp_path, server):
    flags = draw_coco(tmp_path, 4)
    data = tmp_path / "data"
    before = asked(server)
    rows = run(flags, server, data)
    assert asked(server) - before == 12
    assert run(flags, server, data) == rows
    assert asked(server) - before == 12
    # More pictures: only the new ones.
    more = draw_coco(tmp_path / "more", 6)
    assert len(run(more, server, data)) == 18
    assert asked(server) - before == 18

    prompts = tmp_path / "prompts"
    (prompts / "detail").mkdir(parents=True)
    ours = ROOT / "data_generation" / "prompts" / "detail"
    for file in ours.iterdir():
        (prompts / "detail" / file.name).write_text(file.read_text())
    assert run(flags, server, data, "--prompts", str(prompts)) == rows
    assert asked(server) - before == 18
    (prompts / "detail" / "system.txt").write_text("Describe the picture from the sentences given.")
    changed = run(flags, server, data, "--prompts", str(prompts))
    assert asked(server) - before == 22 and len(changed) == 12
    assert {row["kind"] for row, old in zip(changed, rows, strict=True) if row != old} == {"detail"}


def test_reparse_asks_nobody_and_needs_no_key(tmp_path, server, monkeypatch):
    flags = draw_coco(tmp_path, 4)
    data = tmp_path / "data"
    rows = run(flags, server, data, "--server", "ours")
    monkeypatch.delenv("OPENAI_API_KEY")
    again = ["--model", "m", "--server", "ours", "--out", str(data), "--reparse", "--images", "paths"]
    generate.main([*flags, *again])
    paths = load_rows(str(data), str(tmp_path / "pictures")).to_list()
    assert [row["messages"] for row in paths] == [row["messages"] for row in rows]
    assert load_dataset(str(data))["train"][0]["images"] == ["000000000000.png"]
    with pytest.raises(ValueError, match="no ledger of shard 0"):
        generate.main([*flags, "--model", "m", "--out", str(tmp_path / "other"), "--reparse"])


def test_bad_answers_are_asked_for_again_and_counted(tmp_path):
    faults = [
        {"match": "number 0 ", "times": 1, **says("I'm sorry, but I cannot see the picture.")},
        {"match": "number 1 ", "times": 2, **says("It is cut", "length")},
        {"match": "number 2 ", **says("Question:\nWhat is it?\n===\nAnswer:\nThe caption says it is <b>.")},
        {"match": "number 3 ", "status": 400},
    ]
    flags = draw_coco(tmp_path, 5)
    data = tmp_path / "data"
    with TeacherServer(faults=faults) as server:
        rows = run(flags, server, data, "--kinds", "conversation", "--price-input", "1000", "--price-output", "2000")
        stats = server.stats()
    assert [row["id"][:12] for row in rows] == ["000000000000", "000000000001", "000000000004"]
    assert stats["total"] == 2 + 3 + 3 + 1 and stats["requests"] == stats["total"] + 1
    page, card = ((data / name).read_text() for name in ("report.html", "README.md"))
    for reason, number in [("truncated", 2), ("refusal", 1), ("names-its-source", 3), ("failed-http-400", 1)]:
        assert f"- {reason}: {number}" in card
        assert f'<td>{reason}</td><td class="number">{number}</td>' in page
    assert "1 at attempt 1, 1 at attempt 2, 1 at attempt 3" in page
    assert "&lt;b&gt;" in page and "<b>." not in page  # what a model says is text
    spent = (stats["tokens"][0] * 1000 + stats["tokens"][1] * 2000) / 1e6
    assert f"${spent:,.2f}" in page and f"${spent:,.2f} at most" in card
    assert page.count("data:image/jpeg;base64,") == 3


def test_a_second_like_the_first_is_left_out(tmp_path, server):
    flags = draw_coco(tmp_path, 3)
    captions = json.loads((tmp_path / "captions.json").read_text())
    for annotation in captions["annotations"]:
        annotation["caption"] = "A cat on a chair." if annotation["image_id"] < 2 else "A dog under a table."
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    before = asked(server)
    rows = run(flags, server, tmp_path / "data", "--kinds", "conversation")
    assert asked(server) - before == 2  # two pictures with one context are one request
    assert [row["image_id"] for row in rows] == [["000000000000"], ["000000000002"]]
    assert "- duplicate: 1" in (tmp_path / "data" / "README.md").read_text()
    kept = run(flags, server, tmp_path / "data", "--kinds", "conversation", "--duplicates", "keep")
    assert len(kept) == 3


def test_interrupted_it_drains_and_goes_on_later(tmp_path):
    flags = draw_coco(tmp_path, 60)
    arguments = [*flags, "--model", "m", "--out", str(tmp_path / "data"), "--server", "ours", "--concurrency", "8"]
    with TeacherServer(latency=0.3) as server:
        command = [sys.executable, "-m", "recipes.cli", "generate", *arguments, "--base-url", server.url]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while asked(server) < 20 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        stats = server.stats()
        assert process.returncode == 130, err
        assert "Nothing that was answered is lost" in out and "Traceback" not in err
        assert 20 <= stats["total"] == stats["requests"] < 150  # none was given up
        assert not (tmp_path / "data" / "README.md").exists()
    with TeacherServer() as server:
        generate.main([*arguments, "--base-url", server.url])
        assert server.stats()["total"] == 180 - stats["total"]
    ids = [row["id"] for row in rows_of(tmp_path / "data")]
    assert len(ids) == 180 == len(set(ids))


def test_the_money_runs_out_and_what_there_is_becomes_a_data_set(tmp_path, capsys):
    flags = draw_coco(tmp_path)
    arguments = [*flags, "--model", "m", "--out", str(tmp_path / "data"), "--server", "ours", "--max-requests", "10"]
    with TeacherServer() as server:
        assert llava(["generate", *arguments, "--base-url", server.url]) == 1
        assert server.stats()["total"] == 10 == len(rows_of(tmp_path / "data"))
        assert "max_requests" in capsys.readouterr().err
        assert llava(["generate", *arguments, "--base-url", server.url, "--max-requests", "100"]) == 0
        assert server.stats()["total"] == 36 == len(rows_of(tmp_path / "data"))


def test_a_wrong_key_ends_the_run_and_is_nowhere(tmp_path, capsys):
    fault = {"status": 401, "error": {"message": f"Incorrect API key provided: {KEY}"}}
    flags = draw_coco(tmp_path, 3)
    with TeacherServer(faults=[fault]) as server:
        assert llava(["generate", *flags, "--model", "m", "--base-url", server.url, "--out", str(tmp_path / "d")]) == 1
        assert asked(server) == 1
    shown = capsys.readouterr()
    assert "OPENAI_API_KEY" in shown.err and KEY not in shown.err + shown.out
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_nothing_left_is_an_error_and_the_old_data_set_stays(tmp_path):
    flags = draw_coco(tmp_path, 3)
    with TeacherServer() as server:
        rows = run(flags, server, tmp_path / "data", "--server", "ours")
    with TeacherServer(faults=[says("No.")]) as server:
        other = ["--model", "other", "--server", "ours", "--out", str(tmp_path / "data"), "--base-url", server.url]
        with pytest.raises(ValueError, match=r"Not one row is left(?s:.)*rows: 0 of 9"):
            generate.main([*flags, *other, "--kinds", "conversation,detail,reasoning"])
    assert rows_of(tmp_path / "data") == rows
    assert [folder.name[:2] for folder in (tmp_path / "data" / "data").iterdir()] == ["1-"]
