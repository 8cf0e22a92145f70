"""The page of `llava demo` in a real browser.

This needs gradio (the `demo` extra), playwright (`pip install playwright`) and a Chromium in the PATH.
"""

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from io import BytesIO

import pytest
from PIL import Image

from tests.browsing import NEEDS_BROWSER, Person
from tests.browsing import browser as browser
from tests.talking import LONG, QUESTION, expected
from tests.talking import folder as folder
from tests.talking import talkers as talkers


pytestmark = NEEDS_BROWSER


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


@pytest.fixture
def person(browser, served):
    person = Person(browser, served)
    yield person
    person.context.close()


def plain(text: str) -> str:
    """As a browser shows it."""
    return " ".join(text.split())


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


def test_text_is_shown_as_it_is(person, served):
    text = f"<image> </s> <b>&lt;</b> **x** $$y$$ <img src='{served}never'> ![z]({served}never)"
    person.length(5)
    person.ask(text)
    person.wait_for(1)
    assert person.page.locator(".chat").first.locator("[data-testid=user]").inner_text().strip() == text
    assert not any("never" in one for one in person.asked)


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


def test_a_port_that_is_taken_is_told(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "recipes.cli", "demo", "--model", "first", "--port", str(port)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and f"Nothing can listen at 127.0.0.1:{port}: " in done.stderr.splitlines()[-1]
