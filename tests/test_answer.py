"""`llava answer`: the same answers whatever the batch, the processes or a kill, from a checkpoint or a server."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, get_peft_model
from PIL import Image as Pictures
from transformers import GenerationConfig

from benchmarks import shapes
from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import cli
from recipes.answer import parser
from recipes.measuring import answer_local, answering
from recipes.measuring.answer_journal import Part
from recipes.measuring.answer_local import load
from recipes.measuring.generation_flags import NOT_OFFERED, chosen_generation, field_names, given_fields
from recipes.measuring.questions import read_data, read_questions
from recipes.merge import merge
from tests import launching, tiny, tiny_text
from tests.openai_server import FakeServer
from tests.teaching import says
from tests.test_readme import page_problems


ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize("batch_size", ["1", "3", "16"])
def test_answers_do_not_depend_on_the_batch(tmp_path, expected, batch_size, capsys):
    out = tmp_path / "a.jsonl"
    assert answer(*FILE, *MODEL, "--out", str(out), "--batch-size", batch_size) == 0
    found = read_lines(out)
    assert [line["text"] for line in found] == expected
    assert [line["question_id"] for line in found] == list(range(12))
    cut = sum(line["metadata"]["finish_reason"] == "length" for line in found)
    assert f"{out}: 12 answers, {cut} cut at 10 tokens" in capsys.readouterr().out
    assert not out.with_name("a.jsonl.journal").exists()


def test_an_answer_says_where_it_comes_from(tmp_path):
    assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a")) == 0
    line = read_lines(tmp_path / "a")[2]
    assert (line["question_id"], line["prompt"], line["model_id"]) == (2, WORDS[2], "model")
    facts = line["metadata"]
    assert facts["images"] == ["00001.png", "00000.png"] and facts["dtype"] == "float32"
    assert facts["generation"]["max_new_tokens"] == 10 and facts["generation"]["do_sample"] is False
    assert facts["checkpoint"] and facts["questions"] and facts["version"]
    assert facts["finish_reason"] in ("stop", "length")


def test_a_stop_token_ends_an_answer_and_a_stop_string_too(tmp_path, expected):
    """What every answer begins with is made the end of it."""
    processor = LlavaProcessor.from_pretrained("model")
    model = LlavaForConditionalGeneration.from_pretrained("model").eval()
    ids = processor.encode_text([{"role": "user", "content": WORDS[0]}]).input_ids
    ended = int(model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=2)[0, -1])
    assert answer(*FILE, *MODEL, "--eos_token_id", str(ended), "--out", str(tmp_path / "a")) == 0
    first = read_lines(tmp_path / "a")[0]
    assert first["metadata"]["finish_reason"] == "stop" and len(first["text"]) < len(expected[0])

    stop = expected[1][2:4]
    assert answer(*FILE, *MODEL, f"--stop_strings={json.dumps([stop])}", "--out", str(tmp_path / "b")) == 0
    second = read_lines(tmp_path / "b")[1]
    assert second["text"] == expected[1].split(stop)[0].strip() and second["metadata"]["finish_reason"] == "stop"


def test_each_picture_is_seen_once(tmp_path, monkeypatch):
    seen = []
    look = LlavaProcessor.pixel_values
    monkeypatch.setattr(LlavaProcessor, "pixel_values", lambda self, images: seen.extend(images) or look(self, images))
    assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a"), "--batch-size", "2") == 0
    assert len(seen) == 2


def test_more_pictures_than_are_kept_are_seen_once_too(monkeypatch):
    """Ten pictures, three questions about each in turn, two pictures kept: five windows."""
    monkeypatch.setattr(answering, "KEPT", 2)
    pictures = [[str(number % 10)] for number in range(30)]
    texts = [[0] * (1 + number * 7 % 30) for number in range(30)]
    batches = answering.plan_batches(texts, pictures, 4)
    assert sorted(number for batch in batches for number in batch) == list(range(30))
    assert [len(batch) for batch in batches] == [4, 2] * 5
    shown = [{pictures[number][0] for number in batch} for batch in batches]
    assert [a | b for a, b in zip(shown[::2], shown[1::2], strict=True)] == [
        {str(i), str(i + 1)} for i in (0, 2, 4, 6, 8)
    ]
    assert answering.plan_batches([], [], 4) == []


def test_questions_of_about_a_length_are_asked_together_those_about_a_picture_side_by_side():
    texts = [[0] * length for length in (10, 200, 70, 20, 100, 30)]
    pictures = [["a"], ["b"], ["a"], ["b"], ["b"], ["a"]]
    assert answering.plan_batches(texts, pictures, 2) == [[1, 2], [4, 0], [5, 3]]


def test_every_question_of_a_conversation_is_asked(tmp_path):
    """The second after the true first answer; bytes in Parquet and paths in JSONL are the same pictures."""
    turns = [("What is it?", "A red circle."), ("Where?", "On the left."), ("Sure?", None)]
    messages = []
    for question, reply in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        if reply:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
    messages[0]["content"].insert(0, {"type": "image", "text": None})
    messages[2]["content"].insert(0, {"type": "image", "text": None})
    rows = [{"id": "a", "images": ["00000.png", "00001.png"], "messages": messages}]
    write_lines(tmp_path / "rows.jsonl", rows)
    files = [Path("images", name).read_bytes() for name in ("00000.png", "00001.png")]
    part = {"type": Value("string"), "text": Value("string")}
    features = {"id": Value("string"), "images": List(Image()), "image_id": List(Value("string"))}
    features |= {"messages": List({"role": Value("string"), "content": List(part)})}
    row = {"id": ["a"], "messages": [messages], "image_id": [["x", "y"]]}
    row["images"] = [[{"bytes": data, "path": None} for data in files]]
    Dataset.from_dict(row, features=Features(features)).to_parquet(tmp_path / "rows.parquet")

    asked = read_data(str(tmp_path / "rows.jsonl"), "images")
    assert [(q.id, q.prompt, len(q.chat), len(q.pictures)) for q in asked] == [
        ("a", "What is it?", 1, 1),
        ("a#2", "Where?", 3, 2),
        ("a#3", "Sure?", 5, 2),
    ]
    assert asked[2].chat[3] == {"role": "assistant", "content": [{"type": "text", "text": "On the left."}]}
    embedded = read_data(str(tmp_path / "rows.parquet"))
    assert [p.name for p in embedded[1].pictures] == ["x", "y"]
    assert [p.encoded()["bytes"] for p in embedded[1].pictures] == files
    for data in ("rows.jsonl", "rows.parquet"):
        words = ["--data", str(tmp_path / data), "--image-root", "images", "--out", str(tmp_path / f"{data}.out")]
        assert answer(*words, *MODEL) == 0
    found = [read_lines(tmp_path / f"{data}.out") for data in ("rows.jsonl", "rows.parquet")]
    assert [line["text"] for line in found[0]] == [line["text"] for line in found[1]]
    assert [line["question_id"] for line in found[1]] == ["a", "a#2", "a#3"]


def test_an_adapter_answers_as_the_merged_checkpoint(tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained("model")
    lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    LlavaProcessor.from_pretrained("model").save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    LlavaProcessor.from_pretrained("model").save_pretrained(tmp_path / "merged")
    texts = {}
    for name in ("model", str(tmp_path / "adapter"), str(tmp_path / "merged")):
        assert answer(*FILE, "--model", name, "--max_new_tokens", "10", "--out", str(tmp_path / "a")) == 0
        texts[name] = [line["text"] for line in read_lines(tmp_path / "a")]
        (tmp_path / "a").unlink()
    before, adapter, merged = texts.values()
    assert adapter == merged != before


KILLED = """
import os, signal, sys
from recipes.measuring import answer_local
from recipes import cli
ask, calls = answer_local.answer_batch, []
def watched(*args, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(*args, **options)
answer_local.answer_batch = watched
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_it_goes_on_and_asks_nothing_twice(tmp_path, expected, monkeypatch, capsys):
    out = tmp_path / "a.jsonl"
    words = ["answer", *FILE, *MODEL, "--out", str(out), "--batch-size", "3"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    part = out.with_name("a.jsonl.journal") / "part-00000.jsonl"
    assert len(read_lines(part)) == 6 and not out.exists()
    with open(part, "a") as file:
        file.write('{"number": 11, "te')  # as a kill in the middle of a write would leave it

    assert cli.main([*words[:-1], "3", "--repetition_penalty", "1.5"]) == 1
    assert "generation.repetition_penalty was None and is 1.5" in capsys.readouterr().err
    asked = []
    ask = answer_local.answer_batch
    monkeypatch.setattr(
        answer_local, "answer_batch", lambda f, texts, *a, **o: asked.extend(texts) or ask(f, texts, *a, **o)
    )
    assert cli.main(words) == 0
    assert len(asked) == 6
    assert "12 answers (6 were there)" in capsys.readouterr().out
    assert [line["text"] for line in read_lines(out)] == expected
    assert cli.main(words) == 0 and len(asked) == 6
    assert "its 12 answers are there already" in capsys.readouterr().out


def test_another_run_does_not_go_into_the_same_file(tmp_path, folder, capsys):
    out = ["--out", str(tmp_path / "a")]
    assert answer(*FILE, *MODEL, *out) == 0
    before = (tmp_path / "a").read_text()
    model = LlavaForConditionalGeneration.from_pretrained("model")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    LlavaProcessor.from_pretrained("model").save_pretrained(tmp_path / "other")
    write_lines(tmp_path / "fewer.jsonl", read_lines("asked.jsonl")[:3])
    for words, what in [
        ([*FILE, "--model", str(tmp_path / "other"), "--max_new_tokens", "10"], "checkpoint was"),
        ([*FILE, "--model", "model", "--max_new_tokens", "11"], "generation.max_new_tokens was 10 and is 11"),
        ([*FILE, *MODEL, "--do_sample"], "generation.do_sample was False and is True; seed was None and is 0"),
        ([*FILE, *MODEL, "--dtype", "bfloat16"], "dtype was 'float32' and is 'bfloat16'"),
        (["--questions", str(tmp_path / "fewer.jsonl"), *FILE[2:], *MODEL], "questions was"),
    ]:
        assert answer(*words, *out) == 1
        error = capsys.readouterr().err
        assert what in error and "has answers of another run" in error
    assert (tmp_path / "a").read_text() == before
    for text in ("", "what is it", '{"question_id": 1, "text": "x"}\n', "[1]"):
        (tmp_path / "a").write_text(text)
        assert answer(*FILE, *MODEL, *out) == 1
        assert "is no file of answers of ours" in capsys.readouterr().err
        assert (tmp_path / "a").read_text() == text


def test_draws_depend_on_the_seed_alone(tmp_path):
    def drawn(name, *words):
        out = str(tmp_path / name)
        assert answer(*FILE, *MODEL, "--do_sample", "--temperature", "2.0", "--top_k=0", "--out", out, *words) == 0
        return [line["text"] for line in read_lines(out)]

    one = drawn("a")
    torch.manual_seed(5)
    assert drawn("b") == one != drawn("c", "--seed", "1")


def test_draws_are_the_same_after_an_interruption(tmp_path, monkeypatch, capsys):
    words = [*FILE, *MODEL, "--do_sample", "--batch-size", "3", "--out"]
    assert answer(*words, str(tmp_path / "whole")) == 0
    ask, calls = answer_local.answer_batch, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask(*args, **options)

    monkeypatch.setattr(answer_local, "answer_batch", interrupted)
    assert answer(*words, str(tmp_path / "cut")) == 130
    monkeypatch.setattr(answer_local, "answer_batch", ask)
    assert answer(*words, str(tmp_path / "cut"), "--batch-size", "4") == 1
    assert "batch_size was 3 and is 4" in capsys.readouterr().err
    assert answer(*words, str(tmp_path / "cut")) == 0
    assert "(6 were there)" in capsys.readouterr().out
    assert (tmp_path / "cut").read_text() == (tmp_path / "whole").read_text()


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


def test_a_second_run_into_the_same_file_waits_for_nobody(tmp_path, capsys):
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    (tmp_path / "a.journal").mkdir()
    command = [sys.executable, "-c", script, str(tmp_path / "a.journal" / ".running")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a")) == 1
        other.communicate(b"\n")
    assert "Another run writes into" in (error := capsys.readouterr().err) and "give another `--out`" in error


def test_a_disk_that_fills_up_takes_no_half_of_an_answer_in_silence(tmp_path):
    (tmp_path / "a.journal").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # the kernel writes up to there, and says so once
    try:
        part = Part(tmp_path / "a", 0)
        part.add([{"number": 0, "text": "short"}])
        with pytest.raises(OSError, match="File too large"):
            part.add([{"number": 1, "text": "long" * 50}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    part.close()


def test_a_full_disk_is_told(tmp_path, monkeypatch, capsys):
    def fail(self, answers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "add", fail)
    assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a")) == 1
    told = capsys.readouterr().err
    assert "No space is left on the disk of" in told and "start the same command again: what was answered" in told


def test_the_page_is_true():
    assert page_problems((ROOT / "docs" / "evaluate.md").read_text()) == []


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


def test_a_served_model_gives_the_same_file(tmp_path, capsys):
    rows = [*read_lines("asked.jsonl"), {"question_id": "bmp", "text": "Hi?", "image": "x.bmp"}]
    Pictures.new("RGB", (3, 2), "red").save("images/x.bmp")
    write_lines(tmp_path / "q.jsonl", rows)
    out = tmp_path / "a.jsonl"
    words = [
        "--questions",
        str(tmp_path / "q.jsonl"),
        *FILE[2:],
        "--backend",
        "openai",
        "--model",
        "m",
        "--out",
        str(out),
    ]
    faults = [
        {"times": 1, "status": 429, "headers": {"retry-after-ms": "20"}},
        {"times": 2, "status": 500},
        {"match": "Hi? [", "times": 0},
        {"match": "And the ground?", "times": 1, **says("Cut", "length")},
    ]
    with FakeServer(faults=faults) as server:
        url = ["--base-url", server.url]
        assert answer(*words, *url, "--max_new_tokens", "30", "--concurrency", "4") == 0
        assert "13 answers, 1 cut" in capsys.readouterr().out
        found = read_lines(out)
        colour = Pictures.open("images/00000.png").convert("RGB").getpixel((0, 0))
        assert found[0]["text"] == "answer to Hi?" and found[0]["question_id"] == 0
        assert found[1]["text"] == f"answer to [PNG 32x32 {colour}] {WORDS[1]}"
        assert found[2]["text"].count("[PNG 32x32") == 2
        assert found[12]["text"] == "answer to [PNG 3x2 (255, 0, 0)] Hi?"
        facts = found[1]["metadata"]
        assert facts["generation"] == {"model": "m", "max_completion_tokens": 30, "temperature": 0}
        assert facts["server"] == server.url.removeprefix("http://") and facts["images"] == ["00000.png"]
        assert sum(line["metadata"]["finish_reason"] == "length" for line in found) == 1
        bought = server.stats()["total"]

        out.unlink()
        assert answer(*words, *url, "--max_new_tokens", "30") == 0
        assert "13 answers (13 were there)" in capsys.readouterr().out
        assert read_lines(out) == found and server.stats()["total"] == bought
        assert answer(*words, *url, "--max_new_tokens", "31") == 1
        assert "generation.max_completion_tokens was 30 and is 31" in capsys.readouterr().err
        assert answer(*words, *url, "--num_beams", "2") == 1
        assert "The OpenAI API has no `--num_beams`" in capsys.readouterr().err


def test_what_a_server_does_not_answer_is_counted_and_asked_again(tmp_path, capsys):
    out = tmp_path / "a.jsonl"
    words = [
        *FILE,
        "--backend",
        "openai",
        "--model",
        "m",
        "--out",
        str(out),
        "--extra",
        '{"temperature": null, "top_k": 3}',
    ]
    blocked = {"match": "Hi?", "times": 1, "status": 400, "error": {"code": "content_filter"}}
    with FakeServer(faults=[{"match": "many words", "times": 2, "status": 400}, blocked]) as server:
        url = ["--base-url", server.url]
        assert answer(*words, *url) == 1
        error = capsys.readouterr().err
        assert "2 of 12 questions have no answer (2 x http_400)" in error and "ordered by the test" in error
        assert not out.exists()
        assert answer(*words, *url) == 0
        found = read_lines(out)
        facts = found[0]["metadata"]["generation"]
        assert facts == {"model": "m", "max_completion_tokens": 512, "top_k": 3}
        assert all(line["text"].startswith("answer to") for line in found)
        assert server.stats()["total"] == 12


def test_a_cap_stops_a_served_run(tmp_path, capsys):
    with FakeServer() as server:
        words = [*FILE, "--backend", "openai", "--model", "m", "--base-url", server.url, "--out", str(tmp_path / "a")]
        assert answer(*words, "--max-requests", "5") == 1
        assert "max_requests" in capsys.readouterr().err
        assert server.stats()["total"] == 5
        assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a")) == 1
        assert "server was" in capsys.readouterr().err  # what was paid for is not another model's to replace
        assert answer(*words) == 0
        assert "12 answers (5 were there)" in capsys.readouterr().out and server.stats()["twice"] == 0


def test_a_stock_checkpoint_is_loaded(tmp_path):
    """Written by the stock class, as those of llava-hf are."""
    stock = tiny.stock_twin(LlavaForConditionalGeneration.from_pretrained("model"))
    stock.save_pretrained(tmp_path / "stock")
    LlavaProcessor.from_pretrained("model").save_pretrained(tmp_path / "stock")
    model, processor = load(str(tmp_path / "stock"), "auto")
    assert torch.equal(model.lm_head.weight, stock.lm_head.weight) and processor.chat_template


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_killed(tmp_path, expected):
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/ddp.yaml"), "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--main_process_port", "0", "-m", "recipes.answer"]
    out = tmp_path / "a.jsonl"
    words = [*FILE, *MODEL, "--out", str(out), "--batch-size", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", KILLED, "answer", *words], env=env).returncode == -signal.SIGKILL
    process = subprocess.Popen(
        [*command, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = launching.finish(process)
    assert printed.count("12 answers (4 were there)") == 1 and "process 1 of 2" in printed
    assert [line["text"] for line in read_lines(out)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
