"""docs/serving.md: a stock server with a checkpoint of ours, asked by its own snippet and by `llava answer`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import cli
from tests import tiny, tiny_text
from tests.test_readme import fences
from tests.test_stock import serving


PAGE = (Path(__file__).parent.parent / "docs/serving.md").read_text()


@pytest.mark.slow
def test_the_snippet_and_llava_answer_get_the_words_of_our_classes(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    directory = tmp_path / "checkpoint"
    model, _ = tiny_text.checkpoint(directory)
    tiny.randomize(model)
    model.save_pretrained(directory)
    Image.new("RGB", (50, 30), "red").save(tmp_path / "cat.jpg")
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "image": "cat.jpg", "text": "What is this?"}\n')

    processor = LlavaProcessor.from_pretrained(directory)
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    inputs = processor.encode(chat, [tmp_path / "cat.jpg"])
    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    wanted = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    with serving(directory, tmp_path / "serve.log") as url:
        (snippet,) = [text for language, text in fences(PAGE) if language == "python"]
        for ours, theirs in (("checkpoints/stage2", str(directory)), ("http://localhost:8000/v1", url)):
            assert ours in snippet
            snippet = snippet.replace(ours, theirs)
        done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == wanted

        monkeypatch.chdir(tmp_path)
        words = ["--backend", "openai", "--base-url", url, "--model", str(directory), "--max_new_tokens", "64"]
        # `transformers serve` knows the older name of the limit only.
        words += ["--extra", '{"max_tokens": 64}', "--questions", "questions.jsonl", "--out", "answers.jsonl"]
        assert cli.main(["answer", *words]) == 0
    (line,) = map(json.loads, Path("answers.jsonl").read_text().splitlines())
    assert line["text"] == wanted
