"""`llava chat`: words as they come, pictures, history and commands; test_chat_terminal.py is at a terminal."""

import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import cli
from recipes.chat import Chat
from recipes.measuring.answering import before
from recipes.talking import talker as talking
from recipes.talking.talker import Conversation, Said, device_of, load_talker, picture_of, steady
from recipes.training.train_data import load_rows
from tests import tiny, tiny_text
from tests.test_readme import page_problems


ROOT = Path(__file__).parent.parent
GREEDY = {"max_new_tokens": 12}
FLAGS = ["--model", "model", "--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with random weights, and two pictures."""
    folder = tmp_path_factory.mktemp("chat")
    model, processor = tiny_text.checkpoint(folder / "model")
    tiny.randomize(model)
    # Random bytes are seldom UTF-8, and what follows can change what those before it are read as.
    vocabulary = processor.tokenizer.get_vocab()
    model.generation_config.suppress_tokens = sorted(i for word, i in vocabulary.items() if word.startswith("<0x"))
    model.save_pretrained(folder / "model")
    Image.new("RGB", (50, 30), "red").save(folder / "red.png")
    Image.new("RGB", (30, 50), "blue").save(folder / "a blue one.png")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture
def talker():
    return load_talker("model", "auto", "cpu", None, GREEDY)


def user(text: str, num_images: int = 0) -> dict:
    return {"role": "user", "content": [*[{"type": "image"}] * num_images, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def expected(messages: list[dict], pictures: list[str], model=None) -> str:
    """By the processor and the model alone."""
    processor = LlavaProcessor.from_pretrained("model")
    model = model or LlavaForConditionalGeneration.from_pretrained("model").eval()
    inputs = processor.encode(messages, pictures)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()


def asked(text: str, *pictures: str) -> Conversation:
    conversation = Conversation()
    conversation.waiting = [picture_of(path) for path in pictures]
    conversation.ask(text)
    return conversation


def chat(monkeypatch, lines: str | bytes, *words: str) -> int:
    data = lines if isinstance(lines, bytes) else lines.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return cli.main(["chat", *words])


def without_escapes(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def test_a_pipe_gets_the_answers_and_nothing_else(folder, tmp_path):
    saved = tmp_path / "talk.json"
    lines = (
        f"Hi?\n\nAnd now?\n/image 'a blue one.png'\nWhat is this?\n/save {saved}\n/reset\nHi?\n/exit\nNever asked.\n"
    )
    command = [sys.executable, "-m", "recipes.cli", "chat", *FLAGS, "--device", "cpu", "red.png"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr

    messages, pictures, answers = [user("Hi?", 1)], ["red.png"], []
    for question in (user("And now?"), user("What is this?", 1), None):
        answers.append(expected(messages, pictures))
        messages.append(assistant(answers[-1]))
        if question:
            messages.append(question)
        if len(messages) == 5:
            pictures.append("a blue one.png")
    answers.append(expected([user("Hi?")], []))
    assert len(set(answers)) == 4
    assert done.stdout == "".join(without_escapes(answer) + "\n" for answer in answers)
    assert "red.png (50x30) goes with the next question." in done.stderr and "Forgotten." in done.stderr

    row = json.loads(saved.read_text())
    assert row == {"id": "talk", "images": pictures, "messages": messages}
    rows = load_rows(str(saved), str(folder))
    assert len(rows) == 1 and rows[0]["id"] == "talk" and len(rows[0]["images"]) == 2
    processor = LlavaProcessor.from_pretrained(folder / "model")
    assert processor.encode(rows[0]["messages"], pictures, for_training=True)["pixel_values"].shape[0] == 2


def test_words_come_as_they_are_said(talker):
    said = list(talker.answer(asked("What is this?", "red.png")))
    assert said[-1].text == expected([user("What is this?", 1)], ["red.png"])
    assert len({one.text for one in said}) > 3
    assert all(said[-1].text.startswith(one.text) and not one.ended for one in said[:-1])
    assert said[-1].ended == "length" and not said[-2].ended


def test_an_answer_can_be_stopped(talker):
    stop, running = threading.Event(), threading.active_count()
    said = []
    for one in talker.answer(asked("Hi?"), stop, max_new_tokens=400, min_new_tokens=400):
        said.append(one)
        stop.set()
    assert said[-1].ended == "interrupted" and len(said) < 10
    assert threading.active_count() == running


def test_whoever_leaves_ends_the_generation(talker):
    running = threading.active_count()
    answer = talker.answer(asked("Hi?"), max_new_tokens=400, min_new_tokens=400)
    next(answer)
    assert threading.active_count() == running + 1
    answer.close()
    assert threading.active_count() == running


def test_an_error_in_the_model_reaches_the_reader(talker, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(talker.model, "generate", fails)
    with pytest.raises(ValueError, match="The device has no memory left for this conversation"):
        list(talker.answer(asked("Hi?")))


def test_a_stop_string_is_never_shown(talker):
    whole = expected([user("Hi?")], [])
    stop = whole[3:6]
    said = list(talker.answer(asked("Hi?"), stop_strings=[stop]))
    assert said[-1].text == whole[:3].strip() and said[-1].ended == "stop"
    assert all(whole[:3].startswith(one.text) for one in said)


def test_an_interrupt_while_the_answer_begins_ends_it_too(talker, monkeypatch):
    start, begun = threading.Thread.start, []

    def interrupted(thread):
        start(thread)
        begun.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talker.answer(asked("Hi?"), min_new_tokens=200, max_new_tokens=200))
    assert begun and not begun[0].is_alive()


def test_what_was_shown_before_ctrl_c_counts_as_said(monkeypatch, talker):
    told = []

    def interrupted(*words, **_):
        told.extend(words)
        if words == ("A red",):
            raise KeyboardInterrupt

    monkeypatch.setattr(talker, "answer", lambda _: (Said(text) for text in ("A red", "A red one.")))
    monkeypatch.setattr("recipes.chat.print", interrupted, raising=False)
    talk = Chat(talker, [], is_terminal=True)
    talk.is_watched = True
    talk.ask("Hi?")
    assert told == ["A red", "", "Stopped; what was said stays."]
    assert talk.conversation.messages == [user("Hi?"), assistant("A red")]


@pytest.mark.parametrize(
    "text, shown",
    [("Yes", "Yes"), (" Yes ", "Yes"), ("Yes #", "Yes"), ("Yes ##", "Yes"), ("Yes ### no", "Yes"), ("a#b", "a#b")]
    + [("caf\ufffd", "caf"), ("", "")],
)
def test_what_may_become_something_else_waits(text, shown):
    assert steady(text, ["###"]) == shown


def test_what_stands_before_the_first_stop_string():
    assert before("one STOP two END", ["END", "STOP"]) == "one " and before("one", ["END"]) == "one"


def test_a_question_taken_back_gives_its_pictures_back():
    conversation = asked("One?", "red.png")
    conversation.answered("Red.")
    conversation.waiting = [picture_of("a blue one.png")]
    conversation.ask("Two?")
    assert [picture.name for picture in conversation.pictures] == ["red.png", "a blue one.png"]
    conversation.answered("Blue.")
    assert conversation.take_back() == "Two?"
    assert conversation.messages == [user("One?", 1), assistant("Red.")]
    assert [picture.name for picture in conversation.waiting] == ["a blue one.png"]
    conversation.ask("Two?")
    conversation.ask("Three?")  # in place of the second, which has no answer
    assert conversation.messages[2:] == [user("Three?", 1)] and len(conversation.pictures) == 2


def test_pictures_of_another_conversation_are_not_kept(talker):
    list(talker.answer(asked("Hi?", "red.png", "a blue one.png")))
    assert len(talker.features.kept) == 2
    list(talker.answer(asked("Hi?", "red.png")))
    assert list(talker.features.kept) == [picture_of("red.png").key]


def test_several_may_ask_at_the_same_time(talker):
    questions = [("Hi?", "red.png"), ("What is this?", "a blue one.png"), ("And now?", "red.png")] * 3
    found: dict[int, str] = {}

    def one(number: int) -> None:
        *_, last = talker.answer(asked(*questions[number]))
        found[number] = last.text

    threads = [threading.Thread(target=one, args=[number]) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: expected([user(text, 1)], [path]) for n, (text, path) in enumerate(questions)}


def test_an_answer_cannot_steer_the_terminal(monkeypatch, capsys, talker):
    monkeypatch.setattr(
        talker, "answer", lambda _: (Said(text) for text in ("A \x1b[31mred", "A \x1b[31mred\n\tone\x07\x9b"))
    )
    monkeypatch.setattr(talking, "load_talker", lambda *_: talker)
    assert chat(monkeypatch, "Hi?\n", *FLAGS) == 0
    assert capsys.readouterr().out == "A [31mred\n\tone\n"


@pytest.mark.parametrize("load_in", [None, "4bit", "8bit"])
def test_an_adapter_lies_over_its_base(tmp_path, load_in):
    if load_in:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the `qlora` extra)")
    model = LlavaForConditionalGeneration.from_pretrained("model")
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    model = get_peft_model(model, lora)
    model.save_pretrained(tmp_path)
    LlavaProcessor.from_pretrained("model").save_pretrained(tmp_path)
    base, over = (load_talker(str(name), "auto", "cpu", load_in, GREEDY) for name in ("model", tmp_path))
    question = asked("What is this?", "red.png")
    *_, plain = base.answer(question)
    *_, said = over.answer(question)
    assert plain.text != said.text
    kinds = {type(layer).__name__ for layer in over.model.model.language_model.modules()}
    if load_in is None:
        assert said.text == expected([user("What is this?", 1)], ["red.png"], model.eval())
    else:
        assert ("Linear4bit" if load_in == "4bit" else "Linear8bitLt") in kinds
    assert {type(layer).__name__ for layer in over.model.model.multi_modal_projector.modules()} >= {"Linear"}


def test_bits_without_bitsandbytes_are_told(monkeypatch):
    monkeypatch.setattr(talking, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"--load-in 4bit needs bitsandbytes, which is not installed: pip install"):
        load_talker("model", "auto", "cpu", "4bit", {})


@pytest.mark.parametrize("name", ["cuda:77", "toaster", "cpu:x"])
def test_a_device_that_is_not_there_is_told(name):
    with pytest.raises(ValueError, match=f"--device {name} cannot be used here"):
        device_of(name)


def test_a_conversation_that_is_too_long_is_told(talker):
    with pytest.raises(
        ValueError, match=r"The conversation has [\d,]+ tokens with this question, of which each picture takes 4"
    ):
        talker.answer(asked("Hi? " * 300))
    # What the model holds is the end of an answer, too.
    conversation = asked("Hi? " * 40)
    length = len(talker.processor.encode_text(conversation.messages).input_ids)
    *_, last = talker.answer(conversation, max_new_tokens=4000, min_new_tokens=600)
    assert last.ended == "length" and length < 512


@pytest.mark.parametrize(
    "lines, words, problem",
    [
        ("/image none.png\nHi?\n", FLAGS, "Image `none.png` does not exist"),
        ("/image .\n", FLAGS, "Image `.` is a directory"),
        ("/image http://localhost/x.png\n", FLAGS, "is a URL, and nothing is fetched here"),
        ("/image empty.png\nHi?\n", FLAGS, "Image `empty.png`"),
        ("/image 'half\n", FLAGS, "No closing quotation"),
        ("/imge red.png\n", FLAGS, "There is no `/imge`. /help lists"),
        ("/image\n", FLAGS, "/image: wanted the path of a picture"),
        ("/save none/talk.json\n", FLAGS, "/save `none/talk.json`: there is no folder `none`. Make it"),
        ("/save talk.txt\n", FLAGS, "/save `talk.txt`: wanted the name of a new .json"),
        ("/save\n", FLAGS, "wanted the name of a new .json"),
        ("/save there.json\n", FLAGS, "`there.json` is there already"),
        ("/save new.json\n", FLAGS, "Nothing has been said"),
        (b"What\xff?\n", FLAGS, "is not UTF-8"),
        ("", [*FLAGS, "empty.png"], "Image `empty.png`"),
        ("", [*FLAGS, "--num_beams", "2"], "`--num_beams 2` gives no words before the last"),
        ("", [*FLAGS, "--temperature", "0.5"], "Add --do_sample"),
        ("", [*FLAGS, "--max-new-tokes", "2"], "Did you mean `--max-new-tokens`"),
        ("", ["--model", "red.png"], "has no config.json"),
        ("", ["--model", "."], "has no config.json"),
        ("", [], "There is no `runs/quickstart/stage2`. Make it with `make quickstart`"),
        ("", [*FLAGS, "--device", "toaster"], "--device toaster cannot be used here"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(monkeypatch, capsys, lines, words, problem):
    Path("empty.png").touch()
    Path("there.json").write_text("mine")
    assert chat(monkeypatch, lines, *words) == 1
    shown = capsys.readouterr()
    assert problem in shown.err.splitlines()[-1] and shown.err.splitlines()[-1].startswith("llava chat: error: ")
    assert shown.out == "" and Path("there.json").read_text() == "mine"


@pytest.mark.parametrize("words", ["a blue one.png", "'a blue one.png'", "a\\ blue\\ one.png", "~/a blue one.png"])
def test_a_path_with_spaces(monkeypatch, capsys, folder, words):
    monkeypatch.setenv("HOME", str(folder))
    assert chat(monkeypatch, f"/image {words}\n/image red.png red.png\n", *FLAGS) == 0
    assert len(re.findall("goes with the next question", capsys.readouterr().err)) == 3


def test_nothing_asked_nothing_said(monkeypatch, capsys):
    assert chat(monkeypatch, "\n  \n", *FLAGS) == 0
    assert capsys.readouterr().out == ""


def test_text_that_spells_control_stays_text(monkeypatch, capsys):
    assert chat(monkeypatch, "<image> </s>\n", *FLAGS) == 0
    assert capsys.readouterr().out == without_escapes(expected([user("<image> </s>")], [])) + "\n"


@pytest.mark.parametrize("name", ["chat.md", "serving.md"])
def test_the_pages_say_what_is_so(name):
    assert page_problems((ROOT / "docs" / name).read_text()) == []
