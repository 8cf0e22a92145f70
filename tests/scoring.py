"""Small files in the layouts of benchmarks, and a short way to `llava score` them."""

import base64
import csv
import json
from pathlib import Path

import pytest

from recipes.score import main


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(folder: Path, texts: dict, **more) -> Path:
    return write_lines(folder / "answers.jsonl", [{"question_id": q, "text": t} | more for q, t in texts.items()])


def score(benchmark: str, folder: Path, *flags) -> dict:
    out = folder / "new/scores.json"
    main([benchmark, "--answers", str(folder / "answers.jsonl"), "--out", str(out), *map(str, flags)])
    return json.loads(out.read_text())


def value(result: dict, line: str, metric: str) -> float:
    return result["scores"][line][metric]["value"]


@pytest.fixture
def pope_files(tmp_path):
    (tmp_path / "coco").mkdir()
    questions = []
    for category in ("random", "popular"):
        objects = ["dog", "cup", "car", "bed"]
        rows = [
            {"question_id": n, "image": "1.jpg", "text": f"Is there a {what} in the image?", "label": label}
            for n, (what, label) in enumerate(zip(objects, ["yes", "yes", "no", "no"], strict=True), 1)
        ]
        write_lines(tmp_path / f"coco/coco_pope_{category}.json", rows)
        questions += [
            {"image": row["image"], "text": row["text"] + "\nAnswer with one word.", "category": category}
            for row in rows
        ]
    write_lines(tmp_path / "questions.jsonl", [{"question_id": n} | row for n, row in enumerate(questions)])
    texts = ["Yes", "No.", "Yes, there is.", "no", "yes", "Yes", "I can't see one", "blue"]
    write_answers(tmp_path, dict(reversed(list(enumerate(texts)))))  # their order says nothing
    return tmp_path


def people(said: str, matches: int) -> list[str]:
    return [said] * matches + ["other"] * (10 - matches)


@pytest.fixture
def vqa_files(tmp_path):
    rows = [(10, "number", people("2", 4)), (11, "yes/no", people("yes", 2)), (12, "number", people("7", 10))]
    annotations = [
        {
            "question_id": n,
            "answer_type": kind,
            "multiple_choice_answer": said[0],
            "answers": [{"answer": one, "answer_id": i} for i, one in enumerate(said)],
        }
        for n, kind, said in rows
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return tmp_path


PICTURE = base64.b64encode(b"\x89PNG not opened here").decode()


def write_mmbench(path: Path, rows: list[dict]) -> Path:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image"]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t", restval="")
        table.writeheader()
        table.writerows(rows)
    return path
