"""`llava demo`: what it does with a question, and its page in a real browser.

The page's tests need gradio (the `demo` extra), playwright (`pip install playwright`) and a Chromium in the PATH.
"""

import http.server
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from recipes import cli, demo
from recipes.talking.demo_talks import EXAMPLES, Talks, scene
from recipes.talking.talker import Conversation, Said, Talker, load_talker, picture_of
from tests import tiny, tiny_text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if BROWSER else ["a Chromium"]
LONG = 20_000  # tokens; minutes, of which every test waits for the first words only
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints with random weights that never stop by themselves, and pictures."""
    folder = tmp_path_factory.mktemp("demo")
    for seed, name in ((1, "second"), (2, "first")):
        model, processor = tiny_text.checkpoint(folder / name)
        tiny.randomize(model, seed)
        vocabulary = processor.tokenizer.get_vocab()
        # Random bytes are seldom UTF-8.
        words = [i for word, i in vocabulary.items() if word.startswith("<0x")]
        model.generation_config.suppress_tokens = sorted({*words, *processor.tokenizer.all_special_ids})
        model.config.text_config.max_position_embeddings = 3 * LONG
        model.save_pretrained(folder / name)
    Image.new("RGB", (50, 30), "red").save(folder / "red.png")
    Image.new("RGB", (30, 50), "blue").save(folder / "blue.png")
    Image.new("L", (2000, 1000)).save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"\x89PNG no picture at all")
    (folder / "huge.png").write_bytes(random.Random(0).randbytes(400_000))
    return folder


@pytest.fixture(scope="module")
def talkers(folder) -> dict[str, Talker]:
    return {name: load_talker(str(folder / name), "auto", "cpu", None, {}) for name in ("first", "second")}


@pytest.fixture
def talks(talkers):
    return Talks(talkers, max_pixels=1_000_000, most_tokens=20)


def expected(talker: Talker, turns: list[tuple[str, list[Path]]], tokens: int) -> list[str]:
    conversation, found = Conversation(), []
    for text, paths in turns:
        conversation.waiting = [picture_of(path) for path in paths]
        conversation.ask(text)
        *_, last = talker.answer(conversation, max_new_tokens=tokens)
        conversation.answered(last.text)
        found.append(last.text)
    return found


def last(answers) -> list[str]:
    *_, said = answers
    return [one.text for one in said]


def test_both_checkpoints_answer_each_in_its_own_conversation(folder, talks):
    session = talks.session()
    turns = [(QUESTION, [folder / "red.png", folder / "blue.png"]), ("And now?", [])]
    said = []
    for text, paths in turns:
        talks.ask(session, "me", f" {text}\n", list(map(str, paths)))
        said.append(last(talks.answers(session, "me", 0, 99)))  # more than `most_tokens`
    for number, talker in enumerate(talks.talkers.values()):
        assert [both[number] for both in said] == expected(talker, turns, 20)
        assert len(session.conversations[number].pictures) == 2
    assert said[0][0] != said[0][1] and not talks.running

    talks.again(session, "me")
    assert last(talks.answers(session, "me", 0, 20)) == said[1]
    assert len(session.conversations[0].messages) == 4
    talks.again(session, "me")
    assert last(talks.answers(session, "me", 1.5, 20)) != said[1]


def test_who_leaves_early_keeps_what_was_said(folder, talks):
    session, running = talks.session(), threading.active_count()
    talks.ask(session, "me", QUESTION, [])
    answers = talks.answers(session, "me", 0, 20)
    for said in answers:
        if all(one.text for one in said):
            break
    assert list(talks.running) == ["me"] and threading.active_count() == running + 2
    answers.close()
    assert not talks.running and threading.active_count() == running
    assert [one.messages[-1]["content"][0]["text"] for one in session.conversations] == [one.text for one in said]


def test_stopping_ends_both(talks):
    session = talks.session()
    talks.most_tokens = LONG
    talks.ask(session, "me", QUESTION, [])
    for said in talks.answers(session, "me", 0, LONG):
        talks.stop("another")
        if all(one.text for one in said):
            talks.stop("me")
    assert [one.ended for one in said] == ["interrupted"] * 2
    talks.stop("me")  # nothing is running


@pytest.mark.parametrize(
    "name, problem",
    [
        ("broken.png", "Image `broken.png`"),
        ("huge.png", "Image `huge.png`"),
        ("wide.png", r"Image `wide.png` .*2,000,000"),
        ("none.png", "No such file"),
    ],
)
def test_what_is_no_picture_changes_nothing(folder, talks, name, problem):
    session = talks.session()
    with pytest.raises((ValueError, OSError), match=problem):
        talks.ask(session, "me", QUESTION, [str(folder / "red.png"), str(folder / name)])
    assert session == talks.session() or not any(one.messages or one.waiting for one in session.conversations)
    with pytest.raises(ValueError, match="There is no question"):
        talks.ask(session, "me", "  ", [])
    with pytest.raises(ValueError, match="Nothing has been asked"):
        talks.again(session, "me")


def test_a_question_that_does_not_fit_changes_nothing(folder, talks):
    session = talks.session()
    talks.ask(session, "me", QUESTION, [])
    before = last(talks.answers(session, "me", 0, 5))
    with pytest.raises(ValueError, match="tokens with this question"):
        talks.ask(session, "me", "word " * 3 * LONG, [str(folder / "red.png")])
    for conversation, text in zip(session.conversations, before, strict=True):
        assert len(conversation.messages) == 2 and not conversation.waiting and not conversation.pictures
        assert conversation.messages[1]["content"][0]["text"] == text
    talks.ask(session, "me", QUESTION, [])


def test_a_question_waits_for_the_end_of_the_answer_before(talks):
    session = talks.session()
    talks.ask(session, "me", QUESTION, [])
    for again in (lambda: talks.ask(session, "me", "And now?", []), lambda: talks.again(session, "me")):
        with pytest.raises(ValueError, match="still being answered"):
            again()
    talks.ask(talks.session(), "another", QUESTION, [])
    said = last(talks.answers(session, "me", 0, 5))
    assert all(said) and [len(one.messages) for one in session.conversations] == [2, 2]
    talks.again(session, "me")


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_an_answer_that_nobody_waits_for_is_not_begun(talks, how):
    session, running = talks.session(), threading.active_count()
    talks.ask(session, "me", QUESTION, [])
    getattr(talks, how)("me")
    ((one, other),) = talks.answers(session, "me", 0, LONG)
    assert one == other == Said("", "interrupted") and threading.active_count() == running and not talks.running
    talks.ask(session, "me", QUESTION, [])


def test_scenes_are_unseen_and_asked_about(tmp_path):
    for kind, number in EXAMPLES:
        question, path = scene(random.Random(number), tmp_path, kind, number)
        assert question and Path(path).name == f"microworld-test-0-{number:06}.png"
        assert Image.open(path).size == (720, 720)
    assert scene(random.Random(3), tmp_path) == scene(random.Random(3), tmp_path)


@pytest.mark.parametrize(
    "words, problem",
    [
        ([], "There is no `runs/quickstart/stage2`. Make it with `make quickstart`"),
        (["--model", "first", "--compare", "first"], "--compare first is the checkpoint of --model too"),
        (["--model", "red.png"], "has no config.json"),
    ],
)
def test_what_cannot_be_served_is_told(folder, monkeypatch, capsys, words, problem):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(demo, "find_spec", lambda _: True)
    assert cli.main(["demo", *words]) == 1
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_gradio_that_is_missing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    assert cli.main(["demo"]) == 1
    assert 'needs gradio, which is not installed: pip install -e ".[demo]"' in capsys.readouterr().err


# The page

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the page needs {', '.join(MISSING)}: see CONTRIBUTING.md"),
]


def mark(test):
    for one in needs_browser:
        test = one(test)
    return test


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """The address of a demo with both checkpoints, small limits, and its folder of uploads."""
    uploads = tmp_path_factory.mktemp("temporary")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "recipes.cli", "demo", "--model", "first", "--compare", "second"]
    command += ["--device", "cpu", "--port", str(port), "--max-tokens", str(LONG)]
    command += ["--max-upload", "0.3", "--max-megapixels", "1"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(uploads)},
        stdout=subprocess.PIPE,
        stderr=open(folder / "demo.log", "w"),  # noqa: SIM115
        text=True,
    )
    line = process.stdout.readline()
    assert "shows first and second" in line, (folder / "demo.log").read_text()
    yield line.split()[0]
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert list(uploads.glob("llava-demo-*")) == []


@pytest.fixture(scope="module")
def browser():
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        # Chromium as root, which containers are, runs without a sandbox only.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """A browser of one's own at the page, and every address that it asked for."""

    def __init__(self, browser, url: str):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.open(url)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.box.wait_for()

    @property
    def box(self):
        return self.page.locator("#question textarea")

    def show(self, *paths: Path) -> None:
        self.page.set_input_files("#question input[type=file]", list(paths))

    def thumbnails(self, number: int) -> None:
        self.page.wait_for_function(
            f"document.querySelectorAll('#question .thumbnail-item img').length === {number}", timeout=60_000
        )

    def length(self, tokens: int) -> None:
        if not self.page.locator("input[type=number]").nth(1).is_visible():
            self.page.locator("#settings button").first.click()
        self.page.locator("input[type=number]").nth(1).fill(str(tokens))
        self.page.locator("input[type=number]").nth(1).blur()

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def answers(self, number: int = 0) -> list[str]:
        return self.page.locator(".chat").nth(number).locator("[data-testid=bot]").all_inner_texts()

    def wait_for(self, count: int, number: int = 0, words: str = "") -> None:
        """Until so many answers are there, the last of which begins with `words`."""
        self.page.wait_for_function(
            """([count, number, words]) => {
                const found = document.querySelectorAll('.chat')[number].querySelectorAll('[data-testid=bot]');
                const text = found.length ? found[found.length - 1].innerText.trim() : '';
                return found.length === count && text.length > 0 && text.startsWith(words);
            }""",
            arg=[count, number, words],
            timeout=60_000,
        )

    def wait_until_free(self) -> None:
        self.page.locator("#question .submit-button").wait_for()

    def told(self) -> str:
        toast = self.page.locator(".toast-body.error").last
        toast.wait_for()
        return " ".join(toast.inner_text().split())


@pytest.fixture
def person(browser, served):
    person = Person(browser, served)
    yield person
    person.context.close()


def plain(text: str) -> str:
    """As a browser shows it."""
    return " ".join(text.split())


@mark
def test_a_picture_is_asked_about_and_the_answer_grows(person, folder, talkers, served):
    person.length(120)
    person.show(folder / "red.png")
    person.thumbnails(1)
    person.page.evaluate("""() => {
        window.seen = new Set();
        new MutationObserver(() => {
            const found = document.querySelectorAll('.chat')[0].querySelectorAll('[data-testid=bot]');
            if (found.length) window.seen.add(found[found.length - 1].innerText.trim());
        }).observe(document.body, {subtree: true, childList: true, characterData: true});
    }""")
    person.ask(QUESTION)
    turns = [(QUESTION, [folder / "red.png"])]
    for number, talker in enumerate(talkers.values()):
        (wanted,) = expected(talker, turns, 120)
        person.page.wait_for_function(
            """([number, wanted]) => {
                const found = document.querySelectorAll('.chat')[number].querySelectorAll('[data-testid=bot]');
                return found.length === 1 && found[0].innerText.split(/\\s+/).join(' ').trim() === wanted;
            }""",
            arg=[number, plain(wanted)],
            timeout=60_000,
        )
    grown = sorted(map(plain, person.page.evaluate("[...window.seen]")), key=len)
    assert len(grown) > 3 and plain(expected(talkers["first"], turns, 120)[0]).startswith(grown[-2])
    assert person.page.locator(".chat").first.locator("[data-testid=user] img").count() == 1
    addresses = [one for one in person.asked if not one.startswith(("data:", "blob:"))]
    assert addresses and all(one.startswith(served) for one in addresses)
    assert not any(one.is_visible() for one in person.page.get_by_label("Share").all())

    # A second question with a second picture, then the same again.
    person.wait_until_free()
    person.show(folder / "blue.png")
    person.thumbnails(1)
    person.ask("And now?")
    turns.append(("And now?", [folder / "blue.png"]))
    second = plain(expected(talkers["first"], turns, 120)[1])
    person.wait_for(2)
    person.wait_until_free()
    assert plain(person.answers()[1]) == second
    person.page.click("#again")
    person.page.locator("#question .stop-button").wait_for()
    person.wait_until_free()
    assert [plain(one) for one in person.answers()][1:] == [second]

    person.page.reload()
    person.box.wait_for()
    assert person.answers() == []
    person.length(5)
    person.ask(QUESTION)
    person.wait_for(1)
    person.wait_until_free()
    assert plain(person.answers()[0]) == plain(expected(talkers["first"], [(QUESTION, [])], 5)[0])
    person.page.click("#anew")
    person.page.wait_for_function("document.querySelectorAll('[data-testid=bot]').length === 0")


@mark
def test_a_file_that_cannot_be_used_is_told_and_the_next_one_is_taken(person, folder):
    person.length(5)
    person.ask(QUESTION)
    person.wait_for(1)
    person.wait_until_free()
    person.show(folder / "broken.png")
    person.thumbnails(1)
    person.ask("And this?")
    assert "Image `broken.png`" in person.told()
    # Nothing is lost, neither what was typed nor what was said, and nothing lies over it.
    assert person.box.input_value() == "And this?" and len(person.answers()) == 1
    person.box.click()
    person.page.locator(".chat [data-testid=bot]").first.click()
    person.page.reload()
    person.box.wait_for()

    person.length(5)
    person.show(folder / "wide.png")
    person.thumbnails(1)
    person.ask(QUESTION)
    assert re.search(r"Image `wide.png` .*2,000,000.*1,000,000", person.told())
    person.page.reload()
    person.box.wait_for()

    person.show(folder / "huge.png")
    assert "exceed the maximum allowed size of 307.2 Kb" in person.told()
    person.length(5)
    person.show(folder / "red.png")
    person.thumbnails(1)
    person.ask(QUESTION)
    person.wait_for(1)


@mark
def test_two_people_wait_for_each_other_and_one_who_leaves_holds_nobody_up(person, browser, served, talkers):
    other = Person(browser, served)
    person.length(LONG)
    person.ask(QUESTION)
    person.wait_for(1)
    other.length(7)
    other.ask("Hi?")
    other.page.get_by_text(re.compile("queue: 1/1")).first.wait_for()
    assert other.answers() == []
    person.page.click("#question .stop-button")
    person.wait_until_free()
    other.wait_for(1)
    other.wait_until_free()
    assert plain(other.answers()[0]) == plain(expected(talkers["first"], [("Hi?", [])], 7)[0])
    assert len(person.answers()[0]) > 0

    person.ask("And now?")
    person.wait_for(2)
    other.ask("And now?")
    other.page.get_by_text(re.compile("queue: 1/1")).first.wait_for()
    person.context.close()
    other.wait_for(2)
    other.wait_until_free()
    wanted = expected(talkers["first"], [("Hi?", []), ("And now?", [])], 7)
    assert [plain(one) for one in other.answers()] == [plain(one) for one in wanted]
    other.context.close()


@mark
def test_another_question_and_a_new_chat_while_it_answers(person, talkers):
    person.length(LONG)
    person.ask(QUESTION)
    person.wait_for(1)
    person.page.click("#again")
    assert "still being answered" in person.told()
    person.page.locator(".toast-close").click()
    person.page.locator(".toast-body").wait_for(state="detached")
    person.ask("And now?")
    assert "still being answered" in person.told()
    assert person.box.input_value() == "And now?" and len(person.answers()) == 1

    person.page.click("#anew")
    person.page.wait_for_function("document.querySelectorAll('[data-testid=bot]').length === 0")
    person.length(5)
    person.ask("Hi?")
    person.wait_for(1)
    person.wait_until_free()
    # Nothing of the first answer came back.
    assert [plain(one) for one in person.answers()] == list(map(plain, expected(talkers["first"], [("Hi?", [])], 5)))


@mark
def test_text_is_shown_as_it_is(person, served):
    text = f"<image> </s> <b>&lt;</b> **x** $$y$$ <img src='{served}never'> ![z]({served}never)"
    person.length(5)
    person.ask(text)
    person.wait_for(1)
    assert person.page.locator(".chat").first.locator("[data-testid=user]").inner_text().strip() == text
    assert not any("never" in one for one in person.asked)


@mark
def test_scenes_are_drawn_chosen_and_pasted(person, folder):
    person.page.click("#draw")
    person.thumbnails(1)
    assert person.box.input_value().strip()
    person.length(5)
    person.box.press("Enter")
    person.wait_for(1)
    person.wait_until_free()
    scenes = person.page.locator("#scenes .gallery-item")
    assert not scenes.first.is_visible()
    person.page.click("#anew")
    person.thumbnails(0)
    scenes.first.click()
    person.thumbnails(1)
    person.page.click("#anew")
    person.thumbnails(0)
    person.box.fill("Mine?")
    person.page.click("#draw")
    person.thumbnails(1)
    assert person.box.input_value() == "Mine?"
    person.page.click("#anew")
    person.thumbnails(0)
    person.box.evaluate(
        """async (box, bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'pasted.png', {type: 'image/png'}));
            box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
        }""",
        list((folder / "red.png").read_bytes()),
    )
    person.thumbnails(1)


@contextmanager
def counting_server():
    """A server of pictures, and the paths that were asked of it."""
    asked: list[str] = []
    file = BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(file.getvalue())

        do_HEAD = do_GET

        def log_message(self, *_):
            """Nothing on the screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


@mark
@pytest.mark.parametrize("place", ["path", "url", "other-file"])
def test_no_address_is_fetched_and_no_other_file_is_read(served, folder, place):
    with urllib.request.urlopen(f"{served}config", timeout=60) as reply:
        config = json.loads(reply.read())
    asking = next(one for one in config["dependencies"] if any(target[1] == "submit" for target in one["targets"]))
    with counting_server() as (url, asked):
        file = {"path": f"{url}/x.png", "meta": {"_type": "gradio.FileData"}}
        if place == "url":
            file |= {"path": "x.png", "url": f"{url}/x.png"}
        elif place == "other-file":
            file["path"] = str(folder / "red.png")
        body = {"data": [{"text": QUESTION, "files": [file]}, None], "fn_index": asking["id"]}
        post(f"{served}gradio_api/queue/join", body | {"session_hash": place, "trigger_id": 1})
        with urllib.request.urlopen(f"{served}gradio_api/queue/data?session_hash={place}", timeout=60) as stream:
            for line in stream:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("msg") == "process_completed":
                    break
    assert event["success"] is False and asked == []
    if place == "path":  # Gradio itself refuses such an address only where it leads to a private network
        assert "nothing is fetched here" in event["output"]["error"]


@mark
def test_only_what_was_uploaded_is_served(served, folder):
    for path in (
        folder / "red.png",
        "/etc/passwd",
        f"{folder}/../demo.log",
        "http://localhost/x",
        "https://1.1.1.1/x",
    ):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{served}gradio_api/file={path}", timeout=60)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(f"{served}gradio_api/proxy=https://1.1.1.1/x", timeout=60)


def test_nothing_but_a_browser_on_this_machine_is_let_in_by_default(capsys):
    assert demo.parser().parse_args([]).host == "127.0.0.1"
    with pytest.raises(SystemExit):
        demo.parser().parse_args(["--share"])
    assert "unrecognized arguments: --share" in capsys.readouterr().err


@mark
def test_a_port_that_is_taken_is_told(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "recipes.cli", "demo", "--model", "first", "--port", str(port)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and f"Nothing can listen at 127.0.0.1:{port}: " in done.stderr.splitlines()[-1]
