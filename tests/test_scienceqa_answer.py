"""Answers of a checkpoint to ScienceQA: batches, two passes, going on after a stop, and the commands of the page."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_generation.rows import messages_of
from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.cli import main as llava
from recipes.measuring import scienceqa_answer
from recipes.measuring.scienceqa_answer import Unfinished, join, reasons_of, unfinished
from tests import tiny_text
from tests.conversations import png
from tests.openai_server import FakeServer
from tests.test_readme import fences
from tests.test_scienceqa_score import FACTS, write_problems


PAGE = (Path(__file__).parent.parent / "docs" / "scienceqa.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The problems, their pictures, and a checkpoint whose answers differ from question to question."""
    folder = tmp_path_factory.mktemp("scienceqa")
    write_problems(folder)
    for name, (_, _, _, picture, _, _) in FACTS.items():
        if picture:
            (folder / "images/test" / name).mkdir(parents=True)
            (folder / "images/test" / name / "image.png").write_bytes(png()["bytes"])
    tiny_text.checkpoint(folder / "model")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model")
    with torch.no_grad():  # untrained weights repeat one token
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "model")
    return folder


def flags(folder, out, *more) -> list[str]:
    words = ["scienceqa", "answer", "--problems", f"{folder}/problems.json"]
    words += ["--split-file", f"{folder}/pid_splits.json", "--split", "test", "--image-root", f"{folder}/images"]
    words += ["--model", f"{folder}/model", "--out", str(out), "--max_new_tokens", "6", "--dtype", "float32"]
    return [*words, "--batch-size", "5", *more]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(folder, chat, pictures, max_new_tokens, begun=""):
    """One at a time; `begun` is put behind the prompt as the template would write it."""
    processor = LlavaProcessor.from_pretrained(folder / "model")
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
    inputs = processor.encode(chat, pictures)
    if begun:
        whole = processor.encode([*chat, {"role": "assistant", "content": begun}], pictures)["input_ids"]
        inputs["input_ids"] = whole[:, :-1]  # vicuna_v1 ends an answer with one token
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_answers_are_those_of_one_at_a_time(folder, tmp_path, capsys):
    assert llava(flags(folder, tmp_path / "a.jsonl", "--passes", "2")) == 0
    found = lines(tmp_path / "a.jsonl")
    assert [line["question_id"] for line in found] == list(FACTS)
    assert found[0]["prompt"] == "Question number 1?\nContext: H.\nOptions: (A) option A (B) option B"
    assert found[1]["prompt"].startswith("<image>\nQuestion number 2?\nContext: N/A\n")
    for line in found[:3]:
        picture = f"{folder}/images/test/{line['question_id']}/image.png"
        pictures = [picture] if line["prompt"].startswith("<image>") else []
        chat = messages_of([(line["prompt"].removeprefix("<image>\n"), "")], len(pictures))[:1]
        first = generate(folder, chat, pictures, 6)
        second = generate(folder, chat, pictures, 64, f"{reasons_of(first)}\n###\nANSWER:")
        assert (line["metadata"]["format"], line["metadata"]["passes"]) == ("QCM", [first, second])
        assert line["text"] == join(reasons_of(first), second)
    assert len({line["text"] for line in found}) > 3
    assert not (tmp_path / "a.jsonl.journal").exists()
    assert llava(flags(folder, tmp_path / "a.jsonl", "--passes", "2")) == 0
    assert "its 12 answers are there already" in capsys.readouterr().out
    assert llava(flags(folder, tmp_path / "a.jsonl")) == 1
    assert "has answers of another run: num_passes was 2 and is 1" in capsys.readouterr().err

    assert llava(flags(folder, tmp_path / "b.jsonl", "--letter-only", "--format", "CQM")) == 0
    one = lines(tmp_path / "b.jsonl")[0]
    assert one["prompt"].startswith("Context: H.\nQuestion: Question number 1?\n")
    assert one["prompt"].endswith("\nAnswer with the option's letter from the given choices directly.")
    assert one["metadata"]["passes"] == [one["text"]]


def test_a_stopped_run_goes_on(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scienceqa_answer, "CHUNK", 1)
    assert llava(flags(folder, tmp_path / "whole.jsonl")) == 0
    answer, asked = scienceqa_answer.answered, []

    def two_chunks(*given):
        for number, done in enumerate(answer(*given)):
            asked.extend(entry["number"] for entry in done)
            yield done
            if number == 1:
                raise OSError("no power")

    monkeypatch.setattr(scienceqa_answer, "answered", two_chunks)
    out = tmp_path / "a.jsonl"
    assert llava(flags(folder, out)) == 1
    assert not out.exists() and len(asked) == 10
    (part,) = (tmp_path / "a.jsonl.journal").glob("part-*")
    part.write_bytes(part.read_bytes()[:-7])  # as a kill leaves it
    capsys.readouterr()
    assert llava(flags(folder, out, "--format", "CQM")) == 1
    assert "has answers of another run: format was 'QCM' and is 'CQM'; questions was" in capsys.readouterr().err
    assert llava(flags(folder, out)) == 0
    assert "9 of 12 are answered already" in capsys.readouterr().out
    assert len(asked) == 13 and len(set(asked)) == 12
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    out.write_text("[]\n")
    assert llava(flags(folder, out)) == 1
    assert "is no file of answers of ours" in capsys.readouterr().err


def test_the_same_questions_under_other_ids_are_another_run(folder, tmp_path, capsys):
    problem = json.loads((folder / "problems.json").read_text())["1"]
    (tmp_path / "model").symlink_to(folder / "model")
    for name in ("1", "one"):
        (tmp_path / "problems.json").write_text(json.dumps({name: problem}))
        (tmp_path / "pid_splits.json").write_text(json.dumps({"test": [name]}))
        assert llava(flags(tmp_path, tmp_path / "a.jsonl")) == (name == "one")
    assert "has answers of another run: questions was" in capsys.readouterr().err
    assert lines(tmp_path / "a.jsonl")[0]["question_id"] == "1"


@pytest.mark.parametrize("kind, template", [("llama", "vicuna_v1"), ("llama", "llava_v0"), ("qwen", "chatml")])
def test_an_answer_can_be_left_unfinished(kind, template):
    processor = tiny_text.processor(kind, template)
    chat = messages_of([("Which?", "")], 1)[:1]
    prompt = processor.encode_text(chat).input_ids
    ids = Unfinished(processor).encode_text([*chat, unfinished("It is so.")]).input_ids
    assert ids[: len(prompt)] == prompt
    assert processor.tokenizer.decode(ids[len(prompt) :]).strip() == "It is so.\n###\nANSWER:"


@pytest.mark.parametrize(
    "said, reasons",
    [
        ("LECTURE: x\nSOLUTION: y\n###\nANSWER: B.", "LECTURE: x\nSOLUTION: y"),
        ("A lecture. The answer is B. More", "A lecture."),
        ("cut before the", "cut before the"),
        ("###\nANSWER: B.", ""),
    ],
)
def test_reasons_end_where_the_answer_begins(said, reasons):
    assert reasons_of(said) == reasons


def test_both_passes_become_one_answer():
    assert join("It is so.", "B.\n### Human") == "It is so.\nThe answer is B."
    assert join("", " C.") == "The answer is C."


def test_what_cannot_be_asked_is_said(folder, tmp_path, capsys):
    out = tmp_path / "a.jsonl"
    assert llava(flags(folder, out, "--passes", "2", "--letter-only")) == 1
    assert "Leave out one" in capsys.readouterr().err
    assert llava([word for word in flags(folder, out) if word not in ("--image-root", f"{folder}/images")]) == 1
    assert "Problem `2` has a picture. Say with --image-root" in capsys.readouterr().err
    assert llava(flags(folder, out, "--image-root", str(tmp_path))) == 1
    assert "5 rejected, missing-file: `2`, `3`, `6`, `11`, `12`" in capsys.readouterr().err


def test_every_command_of_the_page_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("problems.json", "pid_splits.json", "images"):
        Path(name).symlink_to(folder / name)
    Path("checkpoints").mkdir()
    Path("checkpoints/sqa").symlink_to(folder / "model")
    text = "".join(text for language, text in fences(PAGE) if language == "bash")
    with FakeServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for line in text.replace("\\\n", " ").splitlines():
            words = [*shlex.split(line)[1:]]
            words += ["--max_new_tokens", "4"] if words[1] == "answer" else []
            assert llava(words) == 0, (words, capsys.readouterr().err)


def test_a_second_run_into_the_same_file_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "a.jsonl"
    holder = "from pathlib import Path; from recipes.measuring.answer_journal import alone_at\n"
    holder += f"with alone_at(Path({str(out)!r}), True): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert llava(flags(folder, out)) == 1
        other.communicate(b"\n", timeout=60)
    assert re.search(r"Another run writes into `.*a.jsonl.journal`", capsys.readouterr().err)
