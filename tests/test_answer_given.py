"""What `llava answer` is given: flags, checkpoints, files of questions, data sets, and what it refuses of them."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import GenerationConfig

from recipes.answer import parser
from recipes.measuring.generation_flags import NOT_OFFERED, chosen_generation, field_names, given_fields
from recipes.measuring.questions import read_data, read_questions
from tests import tiny_text
from tests.questioned import FILE, MODEL, answer, read_lines, write_lines
from tests.questioned import folder as folder
from tests.questioned import inside as inside


def test_generation_flags_are_those_of_transformers():
    flags = parser()
    given = given_fields(
        flags.parse_args(
            [
                "--model",
                "m",
                "--out",
                "o",
                "--data",
                "d",
                "--num-beams",
                "3",
                "--stop_strings",
                "42",
                "--use_cache",
                "false",
            ]
        )
    )
    assert given == {"num_beams": 3, "use_cache": False, "stop_strings": "42"}
    offered = {action.dest.removeprefix("generation.") for action in flags._actions if "generation." in action.dest}
    assert offered == set(field_names()) - NOT_OFFERED.keys() and NOT_OFFERED.keys() < set(field_names())
    assert {"max_new_tokens", "temperature", "num_beams", "repetition_penalty", "stop_strings"} < offered


def test_answers_are_greedy_unless_told():
    own = GenerationConfig(do_sample=True, temperature=0.9, top_p=0.6, max_length=4096, repetition_penalty=1.1)
    chosen = chosen_generation(own, {}, pad_token_id=7)
    assert (chosen.do_sample, chosen.temperature, chosen.top_p, chosen.max_length) == (False, None, None, None)
    assert (chosen.max_new_tokens, chosen.repetition_penalty, chosen.pad_token_id) == (512, 1.1, 7)
    assert chosen_generation(own, {"temperature": 0}, 0).do_sample is False
    drawn = chosen_generation(own, {"do_sample": True, "temperature": 0.2}, 0)
    assert (drawn.do_sample, drawn.temperature, drawn.top_p) == (True, 0.2, 0.6)
    assert own.temperature == 0.9


@pytest.mark.parametrize(
    "words, error",
    [
        (["--max_new_token", "5"], "Did you mean `--max_new_tokens`"),
        (["--batch-sise", "5"], "Did you mean `--batch-size`?"),
        (["--max_length", "5"], "--max_new_tokens counts the answer"),
        (["--num_return_sequences", "2"], "a question has one answer"),
        (["--temperature", "0.5"], "`--temperature` changes nothing while answers are greedy"),
        (["--max_new_tokens", "0"], "`max_new_tokens` must be greater than 0"),
        (["--base-url", "http://localhost:1/v1"], "go with --backend openai"),
        (["--model", "images"], "`images` has no config.json"),
        (["--model", "text-model"], "is a model of type `llama`, wanted `llava`"),
    ],
)
def test_flags_that_cannot_be_meant(tmp_path, words, error, capsys):
    language_model, _ = tiny_text.language_model_for("llama", "llama")
    Path("text-model").mkdir(exist_ok=True)
    language_model.config.save_pretrained("text-model")
    assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a"), *words) == 1
    assert error in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_weight_file_is_named(tmp_path, capsys):
    shutil.copytree("model", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert answer(*FILE, "--model", str(tmp_path / "cut"), "--out", str(tmp_path / "a")) == 1
    assert f"A weight file of `{tmp_path}/cut` cannot be read" in capsys.readouterr().err


def test_a_question_that_the_model_cannot_hold_is_named(tmp_path, capsys):
    write_lines(tmp_path / "q.jsonl", [{"question_id": "long", "text": "why " * 600}])
    assert answer("--questions", str(tmp_path / "q.jsonl"), *MODEL, "--out", str(tmp_path / "a")) == 1
    assert "Question `long` has" in (error := capsys.readouterr().err) and "sees 512 with the answer" in error


GOOD = '{"question_id": 1, "text": "Hi?"}\n'


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "has no questions"),
        (b"\n \n", "has no questions"),
        (b"hello\n", "line 1 of `q.jsonl` is no JSON in UTF-8"),
        (b'{"question_id": 1, "text": "\xff"}', "line 1 of `q.jsonl` is no JSON in UTF-8"),
        (b'[{"question_id": 1, "text": "Hi?"}]', "wanted an object with `question_id` and `text`"),
        (GOOD.encode() + b'{"question_id": 2}', "line 2 of `q.jsonl` is {'question_id': 2}, wanted an object"),
        (b'{"question_id": true, "text": "Hi?"}', "has the question_id True, wanted a string or a whole number"),
        (b'{"question_id": 1, "text": ["Hi?"]}', "has the text ['Hi?'], wanted a string"),
        (b'{"question_id": 1, "text": ""}', "is an empty question"),
        (b'{"question_id": 1, "text": "\\ud800"}', "half a surrogate pair"),
        (b'{"question_id": 1, "text": "Hi?", "image": 7}', "has the image 7, wanted a path"),
        (
            b'{"question_id": 1, "text": "Hi?", "image": "no.png"}',
            "question `1` shows `images/no.png`, which does not",
        ),
        ((GOOD * 2).encode(), "question `1` is there twice, with the same words"),
        (b"x\n" * 5, "And 2 more."),
    ],
)
def test_files_that_cannot_be_asked(content, error):
    Path("q.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="q.jsonl") as caught:
        read_questions(Path("q.jsonl"), "images")
    assert error in str(caught.value)


def test_one_id_may_have_several_questions():
    """As the original's TextVQA file has, where it names the picture; and a byte-order mark is none of the text."""
    rows = [{"question_id": "a", "text": "One?"}, {"question_id": "a", "text": "Two?"}]
    Path("q.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode())
    assert [(question.id, question.prompt) for question in read_questions(Path("q.jsonl"))] == [
        ("a", "One?"),
        ("a", "Two?"),
    ]


def test_a_data_set_that_cannot_be_asked(tmp_path, capsys):
    broken = {"id": "x", "images": [], "messages": [{"role": "assistant", "content": "A cat."}]}
    write_lines(tmp_path / "rows.jsonl", [broken])
    with pytest.raises(ValueError, match="Message 0 of conversation `x` is by the assistant, wanted the user"):
        read_data(str(tmp_path / "rows.jsonl"))
    assert answer("--data", "asked.jsonl", *MODEL, "--out", str(tmp_path / "a")) == 1
    assert "wanted rows with `messages`" in capsys.readouterr().err


def test_a_broken_picture_is_named_and_what_was_answered_stays(tmp_path, capsys):
    Path("images/broken.png").write_bytes(Path("images/00002.png").read_bytes()[:100])
    write_lines(
        tmp_path / "q.jsonl", [*read_lines("asked.jsonl"), {"question_id": 99, "text": "?", "image": "broken.png"}]
    )
    words = ["--questions", str(tmp_path / "q.jsonl"), *FILE[2:], *MODEL, "--out", str(tmp_path / "a")]
    assert answer(*words, "--batch-size", "4") == 1
    assert "Image `images/broken.png` is broken or cut short" in capsys.readouterr().err
    were_there = len(read_lines(tmp_path / "a.journal" / "part-00000.jsonl"))
    assert were_there in (4, 8, 12)
    Path("images/broken.png").write_bytes(Path("images/00002.png").read_bytes())
    assert answer(*words) == 0
    assert f"13 answers ({were_there} were there)" in capsys.readouterr().out
