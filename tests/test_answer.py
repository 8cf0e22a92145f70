"""`llava answer`: the same answers whatever the batch and the form of the questions, from a checkpoint or a server."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, get_peft_model
from PIL import Image as Pictures

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.measuring import answering
from recipes.measuring.answer_local import load
from recipes.measuring.questions import read_data
from recipes.merge import merge
from tests import tiny
from tests.openai_server import FakeServer
from tests.questioned import FILE, MODEL, WORDS, answer, read_lines, write_lines
from tests.questioned import expected as expected
from tests.questioned import folder as folder
from tests.questioned import inside as inside
from tests.teaching import says
from tests.test_readme import page_problems


ROOT = Path(__file__).parent.parent


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


def test_draws_depend_on_the_seed_alone(tmp_path):
    def drawn(name, *words):
        out = str(tmp_path / name)
        assert answer(*FILE, *MODEL, "--do_sample", "--temperature", "2.0", "--top_k=0", "--out", out, *words) == 0
        return [line["text"] for line in read_lines(out)]

    one = drawn("a")
    torch.manual_seed(5)
    assert drawn("b") == one != drawn("c", "--seed", "1")


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


def test_the_page_is_true():
    assert page_problems((ROOT / "docs" / "evaluate.md").read_text()) == []
