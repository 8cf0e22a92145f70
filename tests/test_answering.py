"""Many questions at once: the same answers as one at a time, whatever the batch, and each picture seen once."""

import pytest
import torch

from benchmarks import shapes
from modeling_llava import LlavaForConditionalGeneration
from recipes.answering import Features, answer, pad_left
from tests import tiny_text


QUESTIONS = [
    "Hi?",
    "What colour is the shape?",
    "What is this? Say it in many words, please.",
    "And what is the ground?",
]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A checkpoint; chats without, with one and with two pictures, and with an earlier turn."""
    folder = tmp_path_factory.mktemp("asked")
    shapes.write_data(folder, num_images=3, seed=0)
    _, processor = tiny_text.checkpoint(folder / "model")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
    with torch.no_grad():  # untrained weights repeat one token, which would hide what goes wrong
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    files = sorted(str(path) for path in (folder / "images").iterdir())
    chats, pictures = [], []
    for number, question in enumerate(QUESTIONS * 3):
        seen = files[: number % 3]
        content = [{"type": "image"} for _ in seen] + [{"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        if number % 4 == 0:
            chat += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
        chats.append(chat)
        pictures.append(seen)
    return model, processor, chats, pictures


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_does_not_change_answers(asked, batch_size):
    model, processor, chats, pictures = asked
    expected = []
    for chat, seen in zip(chats, pictures, strict=True):
        inputs = processor.encode(chat, seen)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(text.strip())
    assert len(set(expected)) > 3
    assert answer(model, processor, chats, pictures, batch_size, max_new_tokens=12) == expected


def test_each_picture_is_seen_once(asked, monkeypatch):
    model, processor, chats, pictures = asked
    seen = []
    open_pictures = type(processor).pixel_values
    monkeypatch.setattr(
        type(processor), "pixel_values", lambda self, images: seen.extend(images) or open_pictures(self, images)
    )
    answer(model, processor, chats, pictures, batch_size=2, max_new_tokens=1)
    assert len(seen) == len(set(seen)) == 2


def test_features_are_given_up_when_there_are_too_many(asked, monkeypatch):
    model, processor, _, pictures = asked
    monkeypatch.setattr("recipes.answering.KEPT", 1)
    features = Features(model, processor)
    one, other = pictures[2]
    expected = features.of([one, other])
    assert torch.equal(features.of([other]), expected[1:])
    assert torch.equal(features.of([one, other]), expected)


def test_no_questions_are_no_answers(asked):
    model, processor, _, _ = asked
    assert answer(model, processor, [], []) == []


def test_rows_are_padded_on_the_left():
    ids, mask = pad_left([[1, 2, 3], [4]], 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
