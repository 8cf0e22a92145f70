"""Small benchmarks on disk for a judge, its key, and short ways to run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_generation.microworld.questions import all_questions
from data_generation.microworld.scene import make_scene
from data_generation.microworld.source import annotated
from recipes.cli import main as llava


ROOT = Path(__file__).parent.parent
KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path: Path, texts: dict[Any, str]) -> Path:
    return write_jsonl(path, [{"question_id": name, "text": text} for name, text in texts.items()])


def plain_bench(folder: Path, count: int = 3, kinds: tuple[str, ...] = ("conv", "detail", "complex")) -> list[str]:
    """Questions `what 0?`, answered `ref 0` by the reference and `cand 0` by `a.jsonl`; the flags that name them."""
    folder.mkdir(exist_ok=True, parents=True)
    rows = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"what {n}?", "category": kinds[n % len(kinds)]}
        for n in range(count)
    ]
    write_jsonl(folder / "questions.jsonl", rows)
    known = [{"id": f"{n}", "image": f"{n}.jpg", "caption": f"A picture of {n}."} for n in range(count)]
    write_jsonl(folder / "context.jsonl", known)
    answers(folder / "reference.jsonl", {n: f"ref {n}" for n in range(count)})
    answers(folder / "a.jsonl", {n: f"cand {n}" for n in range(count)})
    return flags(folder)


def flags(folder: Path, *names: str) -> list[str]:
    files = [str(folder / f"{name}.jsonl") for name in names or ("a",)]
    found = ["judge", "--questions", str(folder / "questions.jsonl"), "--context", str(folder / "context.jsonl")]
    return [*found, "--reference", str(folder / "reference.jsonl"), "--answers", *files, "--model", "m"]


def conversation(name: str, *turns: tuple[str, str], **more) -> dict:
    messages = []
    for asked, answer in turns:
        content = [{"type": "image"}, {"type": "text", "text": asked}] if not messages else asked
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": name, "images": ["1.jpg"], "messages": messages, **more}


def micro_bench(folder: Path, scenes: int = 2) -> dict[int, str]:
    """COCO's layout about scenes of the micro world: one question of each of three kinds; gives the true answers."""
    folder.mkdir(exist_ok=True, parents=True)
    rows, known, truths = [], [], {}
    for number in range(scenes):
        scene = make_scene("test", number)
        image = annotated(scene, 24)
        boxes = [{"category": box.label, "bbox": [box.x1, box.y1, box.x2, box.y2]} for box in image.boxes]
        name = f"{number:012d}.png"
        known.append({"id": f"{number:012d}", "image": name, "captions": list(image.captions), "instances": boxes})
        every = all_questions(scene.things)
        chosen = [every[0], next(q for q in every if q.kind == "detail"), every[-1]]
        for kind, question in zip(("conv", "detail", "complex"), chosen, strict=True):
            truths[len(rows)] = question.answer
            row = {"question_id": len(rows), "image": name, "text": question.text, "category": kind}
            rows.append(row)
    write_jsonl(folder / "questions.jsonl", rows)
    write_jsonl(folder / "context.jsonl", known)
    answers(folder / "reference.jsonl", truths)
    return truths


def run(words: list[str], url: str, out: Path, *more: str) -> dict[str, Any]:
    """results.json"""
    assert llava([*words, "--base-url", url, "--server", "here", "--out", str(out), *more]) == 0
    return json.loads((out / "results.json").read_text())


def error_of(words, capsys) -> str:
    assert llava(words) == 1
    return capsys.readouterr().err


def start(words: list[str], url: str, out: Path, *more: str) -> subprocess.Popen:
    """The command in a process that can be stopped."""
    command = [sys.executable, "-m", "recipes.cli", *words, "--base-url", url, "--server", "here", "--out", str(out)]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def reviews(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "reviews.jsonl").read_text().splitlines()]
