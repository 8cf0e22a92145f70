"""A checkpoint with random weights, questions about no picture, one or two, and short ways to `llava answer` them."""

import json
from pathlib import Path

import pytest

from benchmarks import shapes
from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import cli
from tests import tiny, tiny_text


WORDS = ["Hi?", "What colour is the shape?", "What is this? Say it in many words, please.", "And the ground?"]
MODEL = ["--model", "model", "--max_new_tokens", "10"]
FILE = ["--questions", "asked.jsonl", "--image-root", "images"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with random weights, and twelve questions about no picture, one or two."""
    folder = tmp_path_factory.mktemp("answer")
    shapes.write_data(folder, num_images=3, seed=0)
    model, _ = tiny_text.checkpoint(folder / "model")
    tiny.randomize(model)
    model.save_pretrained(folder / "model")
    rows = [{"question_id": number, "text": WORDS[number % 4]} for number in range(12)]
    for number, row in enumerate(rows):
        if number % 3:
            row["image"] = "00000.png" if number % 3 == 1 else ["00001.png", "00000.png"]
    write_lines(folder / "asked.jsonl", rows)
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def write_lines(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def answer(*words: str) -> int:
    return cli.main(["answer", *words])


@pytest.fixture(scope="module")
def expected(folder):
    """One at a time, by the processor and the model alone."""
    processor = LlavaProcessor.from_pretrained(folder / "model")
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
    found = []
    for row in read_lines(folder / "asked.jsonl"):
        images = row.get("image", [])
        images = [str(folder / "images" / one) for one in ([images] if isinstance(images, str) else images)]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": row["text"]}]
        inputs = processor.encode([{"role": "user", "content": content}], images)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=10)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.decode(ids, skip_special_tokens=True).strip())
    assert len(set(found)) > 6
    return found
