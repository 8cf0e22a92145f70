"""docs/data.md: every form of its JSON blocks is taken, and every error of its table is said."""

import json
import re
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from recipes import cli
from recipes.training.train_data import load_rows
from tests import tiny_text
from tests.test_readme import fences


PAGE = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
PLACE = {"type": "image"}


def said(text: str) -> dict:
    return {"type": "text", "text": text}


def asks(*content: dict) -> dict:
    return {"role": "user", "content": list(content)}


def answers(*content: dict) -> dict:
    return {"role": "assistant", "content": list(content)}


def row(*messages: dict, images: tuple[str, ...] = ("a.png",)) -> dict:
    return {"id": "1", "images": list(images), "messages": list(messages)}


QUESTION, ANSWER = asks(PLACE, said("What is it?")), answers(said("Red."))
# What the table says is found -> a file with it.
FOUND = {
    "no column `messages`": {"id": "1", "conversations": [{"from": "human", "value": "x"}]},
    "a broken line": '{"id": 1,\n',
    "an empty file": "",
    "no message at all": row(images=()),
    "the role `human`": row({"role": "human", "content": "x"}, ANSWER, images=()),
    "two questions in a row": row(QUESTION, asks(said("Well?")), ANSWER),
    "a question at the end": row(QUESTION),
    "an empty question": row(asks(), ANSWER, images=()),
    "an empty answer": row(QUESTION, answers(said(" "))),
    "a picture in an answer": row(asks(said("Show me one.")), answers(PLACE, said("Here."))),
    "a part of another type": row(asks({"type": "video"}), ANSWER),
    "two pictures, one place": row(QUESTION, ANSWER, images=("a.png", "b.png")),
    "a picture in its place and in `images`": row(asks({"type": "image", "path": "a.png"}), ANSWER),
    "a picture that is missing": row(QUESTION, ANSWER, images=("c.png",)),
    "an address instead of a path": row(QUESTION, ANSWER, images=("https://images.example/a.png",)),
    "a picture that is none": row(QUESTION, ANSWER, images=("text.png",)),
    "a picture that is cut off": row(QUESTION, ANSWER, images=("cut.png",)),
    "a question longer than `--max-length`": row(asks(PLACE, said("the dog " * 400)), ANSWER),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tiny_text.checkpoint(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    file = BytesIO()
    Image.effect_noise((60, 40), 80).convert("RGB").save(file, "PNG")
    for name in ("images/000123.jpg", "images/a.png", "images/b.png", "a.png"):
        (tmp_path / name).write_bytes(file.getvalue())
    (tmp_path / "images/cut.png").write_bytes(file.getvalue()[:900])
    (tmp_path / "images/text.png").write_text("no picture")
    return tmp_path


def check(start: Path, *more: str) -> int:
    return cli.main(["data", "check", "data.jsonl", "--model", str(start), "--image-root", "images", *more])


def test_every_form_of_the_page_is_taken(folder, start, capsys):
    rows = [json.loads(text) for language, text in fences(PAGE) if language == "json"]
    assert len(rows) == 6
    Path("data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert check(start) == 0
    assert "0 of 6 conversations cannot be used" in (out := capsys.readouterr().out)
    assert "6 pictures in them" in out
    Path("data.json").write_text(json.dumps(rows))
    assert len(load_rows("data.json", "images")) == 6


def table() -> list[tuple[str, str]]:
    lines = re.search(r"\| found \| said \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)[1].splitlines()
    return [tuple(re.match(r"\| (.*) \| (.*) \|$", line).groups()) for line in lines]


def test_the_table_is_whole():
    assert [found for found, _ in table()] == list(FOUND)


@pytest.mark.parametrize("found, words", table())
def test_the_error_is_said(folder, start, capsys, found, words):
    content = FOUND[found]
    Path("data.jsonl").write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    assert check(start, "--max-length", "512") == 1
    assert words in capsys.readouterr().err


def test_the_original_json_comes_and_goes(folder):
    original = [
        {"id": "7", "image": f"{place}a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}]}
        for place in ("", "coco/")
    ]
    for one in original:
        one["conversations"].append({"from": "gpt", "value": "Red."})
    original[1]["id"] = "8"
    Path("llava_v1_5_mix665k.json").write_text(json.dumps(original))
    (folder / "data/coco").mkdir(parents=True)
    (folder / "data/coco/a.png").write_bytes((folder / "a.png").read_bytes())
    commands = [text for language, text in fences(PAGE) if "llava data import" in text]
    for line in commands[0].strip().splitlines():
        assert cli.main(line.replace("/data/coco", "data/coco").split()[1:]) == 0
    again = json.loads(Path("again.json").read_text())
    assert [one["conversations"] for one in again] == [one["conversations"] for one in original]
