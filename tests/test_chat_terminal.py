"""`llava chat` at a terminal, as somebody sits there."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from tests import tiny, tiny_text


pytestmark = pytest.mark.slow  # on a busy machine a key may come at a moment when Python does not look


# Makes the standard input the terminal of the session, so that Ctrl-C typed there is a signal.
AT_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
from recipes.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Shown:
    def __init__(self, terminal: int):
        self.terminal, self.text = terminal, ""
        self.deadline = time.monotonic() + 300

    def more(self) -> None:
        left = self.deadline - time.monotonic()
        assert left > 0 and select.select([self.terminal], [], [], left)[0], f"it did not come: {self.text[-2000:]!r}"
        self.text += os.read(self.terminal, 4096).decode(errors="replace")

    def letters(self) -> None:
        while not re.search(r"[A-Za-z]", re.sub(r"\x1b(\[[?\d;]*([A-Za-z]|$))?", "", self.text)):
            self.more()

    def press(self, key: bytes, wanted: str) -> None:
        """Again where nothing comes of it: a Ctrl-C between a prompt and the waiting for keys waits for another."""
        while wanted not in self.text:
            os.write(self.terminal, key)
            again = time.monotonic() + 10
            while wanted not in self.text and time.monotonic() < again:
                if select.select([self.terminal], [], [], 1)[0]:
                    self.more()
        self.until(wanted)

    def until(self, *parts: str) -> None:
        for part in parts:
            while part not in self.text:
                self.more()
            self.text = self.text.partition(part)[2]


def test_a_terminal_is_forgiven_and_interrupts_answers_only(tmp_path):
    """An answer of 50,000 tokens is stopped by Ctrl-C after its first words; an error does not end it, Ctrl-D does."""
    model, processor = tiny_text.checkpoint(tmp_path / "endless")
    tiny.randomize(model)
    model.config.text_config.max_position_embeddings = 60_000
    # Random bytes are seldom UTF-8, and what follows can change what those before it are read as.
    vocabulary = processor.tokenizer.get_vocab()
    model.generation_config.suppress_tokens = sorted(i for word, i in vocabulary.items() if word.startswith("<0x"))
    model.save_pretrained(tmp_path / "endless")
    master, slave = pty.openpty()
    command = [sys.executable, "-c", AT_TERMINAL, "chat", "--model", "endless", "--device", "cpu"]
    command += ["--max_new_tokens", "50000", "--min_new_tokens", "50000"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=tmp_path
    ) as process:
        os.close(slave)
        try:
            sit_there(master)
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(master)
    saved = json.loads((tmp_path / "ended.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]


def sit_there(master: int) -> None:
    shown = Shown(master)
    shown.until("> ")
    os.write(master, b"/image none.png\n")
    shown.until("error: ", "none.png", "> ")
    os.write(master, b"???\n")  # without a letter: what shows one is the answer, however often this is echoed
    shown.letters()  # before the first of them, Ctrl-C takes the question back, or ends the line
    shown.press(b"\x03", "Stopped; what was said stays.")
    shown.until("> ")
    shown.press(b"\x03", "Ctrl-D or /exit ends.")
    shown.until("> ")
    os.write(master, b"/save ended.json\n")
    shown.until("1 questions and answers", "> ")
    os.write(master, b"\x04")
