"""Two checkpoints that never stop by themselves, pictures and files that are none, and what is answered about them."""

import random
from pathlib import Path

import pytest
from PIL import Image

from recipes.talking.demo_talks import Talks
from recipes.talking.talker import Conversation, Talker, load_talker, picture_of
from tests import tiny, tiny_text


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
