"""Every command of docs/generate.md is run, in order, in one folder; the addresses are those of the fake server."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, List, Value

from recipes.cli import main as llava
from recipes.generate import parser
from recipes.generating.generate_flags import check_flags
from recipes.training.train_data import load_rows
from tests.teaching import TeacherServer, draw_coco, write
from tests.test_readme import fences, page_problems


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "generate.md").read_text()


def surroundings(folder: Path) -> None:
    """The files that the page names."""
    draw_coco(folder, 6)
    (folder / "pictures").rename(folder / "train2017")
    (folder / "captions.json").rename(folder / "captions_train2017.json")
    (folder / "instances.json").rename(folder / "instances_train2017.json")
    sample = next(json.loads(text) for language, text in fences(PAGE) if language == "json")
    rows = []
    for number, path in enumerate(sorted((folder / "train2017").iterdir())):
        rows.append(
            sample | {"id": f"{number}", "image": str(path), "captions": [f"A shape number {number} on white."]}
        )
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = Features({"id": Value("string"), "image": Image(), "captions": List(Value("string"))})
    table = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(table, features=features).to_parquet(folder / "scenes.parquet")
    shutil.copytree(ROOT / "data_generation" / "prompts" / "detail", folder / "prompts" / "detail")
    (folder / "prompts" / "detail" / "system.txt").write_text("Describe the picture.")


def answer_offline() -> None:
    """As vLLM's `run_batch` does."""
    lines = Path("requests.jsonl").read_text().splitlines()
    with open("answers.jsonl", "w") as file:
        for line in map(json.loads, lines):
            message = {"role": "assistant", "content": write(line["body"]["messages"])}
            body = {"model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
            found = {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}
            file.write(json.dumps(found) + "\n")


def commands() -> list[list[str]]:
    text = "".join(text for language, text in fences(PAGE) if language == "bash")
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def test_the_page_is_true():
    assert page_problems(PAGE) == []


def test_every_command_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    surroundings(tmp_path)
    run = 0
    with TeacherServer(batches={"polls": 0}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for words in commands():
            words = [server.url if word.startswith("http://") else word for word in words]
            # Six pictures are here, not the paper's 118,287.
            words = [word.replace("58000", "4").replace("23000", "2").replace("77000", "5") for word in words]
            if "slurm" in words:  # there is none here; tests/test_scale.py runs it on this machine
                check_flags(parser().parse_args(words[2:]))
                continue
            if "import" in words:
                answer_offline()
            assert llava(words[1:]) == 0, (words, capsys.readouterr().err)
            out = words[words.index("--out") + 1]
            run += 1
            if not {"--show-prompt", "--dry-run", "export", "--shard"} & set(words):
                assert len(load_rows(out, "train2017" if "paths" in words else None)) >= 6
    assert run == 14
    assert len(load_rows("data/instruct", "train2017")) == 11 and len(load_rows("data/parts")) == 18


@pytest.mark.parametrize("word", ["--count", "--reparse", "--merge", "batch", "export", "import", "--prompts", "hf"])
def test_the_page_shows(word):
    assert any(word in words for words in commands())
