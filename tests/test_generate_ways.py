"""`llava generate` by other ways: in shards, in batches, over files, from other sources, and without asking at all."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value

from data_generation.ledger import Ledger
from recipes import generate
from recipes.generating.generate_flags import caps_of, pace_of
from recipes.training.train_data import load_rows
from tests.teaching import TeacherServer, draw_coco, says, write
from tests.test_generate import asked, rows_of, run


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")


@pytest.fixture(scope="module")
def server():
    with TeacherServer() as server:
        yield server


def test_shards_make_what_one_process_makes(tmp_path, server, capsys):
    flags = draw_coco(tmp_path)
    whole = run(flags, server, tmp_path / "whole")
    before = asked(server)
    arguments = [*flags, "--model", "m", "--base-url", server.url, "--out", str(tmp_path / "parts")]
    arguments += ["--num-shards", "3", "--max-requests", "90"]
    for shard in ("0", "1"):
        generate.main([*arguments, "--shard", shard])
    with pytest.raises(ValueError, match="no ledger of shard 2 of 3"):
        generate.main([*arguments, "--merge"])
    generate.main([*arguments, "--shard", "2"])
    assert asked(server) - before == 36
    numbers = []
    for number in range(3):
        with Ledger(tmp_path / "parts" / "ledger" / f"{number:05d}-of-00003.sqlite") as ledger:
            numbers.append(ledger.count())
    assert sum(numbers) == 36 and min(numbers) > 0
    capsys.readouterr()
    generate.main([*arguments, "--merge"])
    assert asked(server) - before == 36
    assert rows_of(tmp_path / "parts") == whole
    assert "36 requests" in (tmp_path / "parts" / "README.md").read_text()
    with pytest.raises(ValueError, match="another number of shards than 1"):
        run(flags, server, tmp_path / "parts")


def test_batches_ask_again_for_what_cannot_be_used(tmp_path):
    flags = draw_coco(tmp_path, 4)
    arguments = ["--transport", "batch", "--poll", "0.05", "--kinds", "conversation"]
    with TeacherServer(batches={"shuffle": True}) as server:
        rows = run(flags, server, tmp_path / "data", *arguments)
        stats = server.stats()
        assert len(rows) == 4 == stats["total"] and len(stats["batches"]) == 1
        assert run(flags, server, tmp_path / "data", *arguments) == rows
        assert len(server.stats()["batches"]) == 1
    # What the server refuses is not handed in again in this run.
    captions = json.loads((tmp_path / "captions.json").read_text())["annotations"]
    context = "\n".join(entry["caption"] for entry in captions if entry["image_id"] == 1)
    with TeacherServer(batches={"fail": [context]}) as server:
        assert len(run(flags, server, tmp_path / "fails", *arguments)) == 3
        assert [server.stats()["total"], len(server.stats()["batches"])] == [3, 1]
    # Refused answers: a batch for each attempt.
    with TeacherServer(faults=[], batches={}, refuse="number 2 ") as server:
        rows = run(flags, server, tmp_path / "other", *arguments)
        assert [len(rows), server.stats()["total"], len(server.stats()["batches"])] == [3, 6, 3]


def test_requests_go_out_and_answers_come_in_as_files(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    flags = draw_coco(tmp_path, 3)
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    arguments = [*flags, "--model", "m", "--server", "vllm", "--out", str(tmp_path / "data")]
    generate.main([*arguments, "--transport", "export", "--file", str(requests)])
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    assert len(lines) == 9 and lines[0]["body"]["model"] == "m"

    def answer(line: dict, text: str) -> str:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        response = {"status_code": 200, "body": body}
        return json.dumps({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}) + "\n"

    texts = [write(line["body"]["messages"]) for line in lines]
    texts[4] = "I'm sorry."
    answers.write_text("".join(map(answer, lines[::-1], texts[::-1])))
    generate.main([*arguments, "--transport", "import", "--file", str(answers)])
    assert len(rows_of(tmp_path / "data")) == 8
    # What could not be used goes out once more, under another key.
    generate.main([*arguments, "--transport", "export", "--file", str(requests)])
    (again,) = [json.loads(line) for line in requests.read_text().splitlines()]
    assert again["body"] == lines[4]["body"] and again["custom_id"] != lines[4]["custom_id"]
    answers.write_text(answer(again, write(again["body"]["messages"])))
    generate.main([*arguments, "--transport", "import", "--file", str(answers)])
    assert len(rows_of(tmp_path / "data")) == 9


def test_a_hugging_face_data_set_is_a_source(tmp_path, server):
    draw_coco(tmp_path, 4)
    pictures = sorted((tmp_path / "pictures").iterdir())
    rows = {
        "photo": [{"bytes": path.read_bytes(), "path": None} for path in pictures],
        "texts": [[f"A shape number {number} on white."] for number in range(4)],
        "things": [{"bbox": [[0.0, 0.0, 30.0, 30.0]], "name": ["circle"]}] * 4,
    }
    things = {"bbox": List(List(Value("float32"))), "name": List(Value("string"))}
    features = Features({"photo": Image(), "texts": List(Value("string")), "things": things})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "source.parquet")
    flags = ["--source", "hf", "--data", str(tmp_path / "source.parquet"), "--image-column", "photo"]
    flags += ["--captions-column", "texts", "--boxes-column", "things.bbox", "--labels-column", "things.name"]
    found = run([*flags, "--box-format", "xywh"], server, tmp_path / "data")
    assert [row["id"] for row in found][::3] == [f"{number}_conversation" for number in range(4)]
    assert found[0]["source"] == "source" and found[0]["images"][0]["bytes"] == pictures[0].read_bytes()
    with pytest.raises(ValueError, match="has the bytes of its pictures"):
        run(flags, server, tmp_path / "data", "--images", "paths")


def test_jsonl_is_a_source_and_bad_rows_are_counted_before_anything_is_paid(tmp_path):
    draw_coco(tmp_path, 4)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    images = ["000000000000.png", "000000000001.png", "none.png", "broken.png"]
    lines = [{"id": f"i{n}", "image": name, "captions": [f"Shape number {n}."]} for n, name in enumerate(images)]
    lines.append({"id": "i1", "image": images[1], "captions": ["Twice."]})
    (tmp_path / "pictures" / "scenes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--source", "jsonl", "--data", str(tmp_path / "pictures" / "scenes.jsonl")]
    with TeacherServer() as server:
        arguments = ["--model", "m", "--base-url", server.url, "--out", str(tmp_path / "data")]
        generate.main([*flags, *arguments, "--kinds", "detail", "--images", "paths"])
        assert server.stats()["total"] == 2
    found = load_rows(str(tmp_path / "data"), str(tmp_path / "pictures")).to_list()
    card = (tmp_path / "data" / "README.md").read_text()
    for reason in ("missing-file: 1", "duplicate-id: 1", "unreadable-picture: 1"):
        assert f"- {reason}" in card
    assert [row["images"][0]["path"] for row in found] == [str(tmp_path / "pictures" / name) for name in images[:2]]


def test_numbers_of_images_by_kind(tmp_path, server):
    flags = draw_coco(tmp_path)
    count = ["--count", "conversation=5,detail=2,reasoning=7"]
    rows = run(flags, server, tmp_path / "data", *count)
    images = {kind: {row["image_id"][0] for row in rows if row["kind"] == kind} for kind in generate_kinds()}
    assert [len(images[kind]) for kind in generate_kinds()] == [5, 2, 7]
    assert images["detail"] < images["conversation"] < images["reasoning"]
    other = run(flags, server, tmp_path / "data", *count, "--seed", "1")
    assert {row["id"] for row in other} != {row["id"] for row in rows}
    before = asked(server)
    few = run(flags, server, tmp_path / "data", *count, "--limit", "3")  # part of the run without the limit
    assert asked(server) == before and {row["id"] for row in few} < {row["id"] for row in rows} and len(few) == 8
    with pytest.raises(ValueError, match="conversation: 12 of 13"):
        run(flags, server, tmp_path / "data", "--count", "conversation=13,detail=2,reasoning=7")


def generate_kinds() -> tuple[str, ...]:
    return ("conversation", "detail", "reasoning")


def test_a_dry_run_sends_nothing_and_counts_what_is_there(tmp_path, server, capsys, monkeypatch):
    flags = draw_coco(tmp_path, 4)
    run(flags, server, tmp_path / "data", "--kinds", "detail", "--server", "ours")
    before = asked(server)
    monkeypatch.delenv("OPENAI_API_KEY")
    capsys.readouterr()
    dry = [*flags, "--model", "m", "--server", "ours", "--dry-run"]
    here = ["--out", str(tmp_path / "data")]
    prices = ["--price-input", "1000", "--price-output", "2000", "--price-cached-input", "100", "--rpm", "0.1"]
    generate.main([*dry, *here, *prices])
    out = capsys.readouterr().out
    assert "requests: 8 (conversation 4, reasoning 4)" in out and "answered already: 4" in out
    assert "hours at the given limits: 1.3" in out and "with the same part cached" in out
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    tokens = int(lines["input tokens"].split(",  ")[0].split(", of")[0].replace(",", ""))
    assert 8 * 1000 < tokens < 8 * 4000
    sync, batch = (float(lines[f"money, {way}"].split("$")[2].split(";")[0]) for way in ("sync", "batch"))
    assert sync == pytest.approx((tokens * 1000 + 8 * 2048 * 2000) / 1e6, abs=0.01)
    assert batch == pytest.approx(sync / 2, abs=0.01)
    generate.main([*dry, "--out", str(tmp_path / "elsewhere"), "--max-output", "9"])
    assert "108 at most" in capsys.readouterr().out
    assert asked(server) == before and not (tmp_path / "elsewhere").exists()


def test_the_prompt_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    flags = draw_coco(tmp_path, 2)
    generate.main([*flags, "--model", "m", "--out", str(tmp_path / "data"), "--show-prompt", "--boxes", "never"])
    out = capsys.readouterr().out
    assert out.count("--- system") == 3 and "circle: [" not in out
    assert out.count("A red circle number 0 on white paper.\nA circle of size") == 3
    generate.main([*flags, "--model", "m", "--out", str(tmp_path / "data"), "--show-prompt", "--json"])
    out = capsys.readouterr().out
    assert out.count("circle: [") == 2 and "'response_format'" in out
    assert not (tmp_path / "data").exists()


def test_what_goes_into_requests(tmp_path):
    flags = draw_coco(tmp_path, 2)
    args = ["--kinds", "detail", "--json", "--temperature", "0.5", "--service-tier", "flex", "--max-output", "77"]
    extra = {"max_completion_tokens": None, "max_tokens": 77, "chat_template_kwargs": {"enable_thinking": False}}
    reply = says(json.dumps({"answer": "A shape on white paper. " * 6}))
    out = tmp_path / "data"
    with TeacherServer(faults=[reply]) as server:
        requests = tmp_path / "r.jsonl"
        base = [*flags, "--model", "m", "--base-url", server.url, "--out", str(out), *args]
        generate.main([*base, "--extra", json.dumps(extra), "--transport", "export", "--file", str(requests)])
        body = json.loads(requests.read_text().splitlines()[0])["body"]
        assert body.pop("messages") and body.pop("response_format")["json_schema"]["name"] == "detail"
        wanted = {"model": "m", "temperature": 0.5, "service_tier": "flex", "max_tokens": 77}
        assert body == wanted | {"chat_template_kwargs": {"enable_thinking": False}}
        generate.main([*base, "--extra", json.dumps(extra), "--duplicates", "keep"])
    rows = rows_of(out)
    assert len(rows) == 2 and rows[0]["messages"][1]["content"][0]["text"].startswith("A shape on white")


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--data", "x.jsonl"], "--data: not for --source coco"),
        (["--kinds", "conversation,poems"], "'poems' is wrong"),
        (["--kinds", "detail,detail"], "'detail' is wrong or double"),
        (["--count", "detail=3"], "says nothing of conversation, reasoning"),
        (["--kinds", "detail", "--count", "detail=many"], "'detail=many'; wanted"),
        (["--shard", "1"], "need --num-shards"),
        (["--num-shards", "4"], "needs --shard"),
        (["--num-shards", "4", "--shard", "4"], "no shard 4 of 4"),
        (["--num-shards", "4", "--shard", "0", "--max-requests", "3"], "cannot be divided"),
        (["--max-cost", "5"], "--price-input and --price-output"),
        (["--price-input", "5", "--max-cost", "1"], "Prices need"),
        (["--temperature", "0", "--attempts", "3"], "the same answer"),
        (["--transport", "export"], "--file goes with"),
        (["--file", "x"], "--file goes with"),
        (["--extra", '{"messages": []}'], "may not hold messages"),
        (["--prompts", "nowhere"], "does not exist"),
    ],
)
def test_wrong_flags_are_said_before_anything_is_sent(tmp_path, server, flags, error):
    before = asked(server)
    with pytest.raises(ValueError, match=error):
        run(draw_coco(tmp_path, 2), server, tmp_path / "data", *flags)
    assert asked(server) == before


def test_shards_share_the_limits_of_the_account(tmp_path):
    flags = [
        *draw_coco(tmp_path, 1),
        "--model",
        "m",
        "--out",
        "x",
        "--rpm",
        "600",
        "--tpm",
        "9000",
        "--num-shards",
        "6",
    ]
    flags += ["--max-cost", "12", "--max-requests", "60", "--price-input", "1", "--price-output", "2"]
    args = generate.parser().parse_args([*flags, "--shard", "1"])
    assert (pace_of(args).rpm, pace_of(args).tpm, pace_of(args).concurrency) == (100, 1500, 64)
    assert (caps_of(args).max_cost, caps_of(args).max_requests, caps_of(args).max_tokens) == (2, 10, None)
    args.workers = 2  # fewer at a time: more for each
    assert (pace_of(args).rpm, caps_of(args).max_cost) == (300, 2)


def test_missing_files_are_said(tmp_path):
    flags = draw_coco(tmp_path, 2)
    Path(flags[-1]).unlink()
    with pytest.raises(ValueError, match="instances.json` is no file"):
        generate.main([*flags, "--model", "m", "--out", str(tmp_path / "data")])
    with pytest.raises(ValueError, match="To embed pictures --image-root"):
        generate.main([*flags[:2], *flags[4:6], "--model", "m", "--out", str(tmp_path / "data")])
