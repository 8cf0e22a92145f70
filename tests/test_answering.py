"""Many questions at once: the same answers as one at a time, whatever the batch, and each picture seen once."""

import pytest
import torch
from transformers import GenerationConfig

from benchmarks import shapes
from modeling_llava import LlavaForConditionalGeneration
from recipes.measuring.answering import Features, answer, answer_batch, can_share, pad
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
    monkeypatch.setattr("recipes.measuring.answering.KEPT", 1)
    features = Features(model, processor)
    one, other = pictures[2]
    expected = features.of([one, other])
    assert torch.equal(features.of([other]), expected[1:])
    assert torch.equal(features.of([one, other]), expected)


def test_no_questions_are_no_answers(asked):
    model, processor, _, _ = asked
    assert answer(model, processor, [], []) == []


def test_rows_are_padded_on_the_left_or_after_their_beginning():
    ids, mask = pad([[1, 2, 3], [4]], 0, 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad([[1, 2, 3], [1, 4]], 0, 1)
    assert ids.tolist() == [[1, 2, 3], [1, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 1]]


def ask(asked, questions, shown, **options):
    """Answers of a batch of questions about picture 1 or 2, and how many tokens the language model read at first."""
    model, processor, _, pictures = asked
    files = pictures[2]
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in questions]
    texts = [processor.encode_text(chat).input_ids for chat in chats]
    read = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    options = {"do_sample": False, "max_new_tokens": 12} | options
    try:
        together = answer_batch(Features(model, processor), texts, [files[i] for i in shown], **options)
        at_first = [shape for shape in read if shape[1] > 1]
    finally:
        hook.remove()
    alone = [
        answer_batch(Features(model, processor), [text], [files[i]], **options)[0]
        for text, i in zip(texts, shown, strict=True)
    ]
    assert together == alone
    return texts, at_first


def test_what_questions_begin_with_is_read_once(asked):
    """Four questions about two pictures: two beginnings, then the rest of all four."""
    texts, read = ask(asked, QUESTIONS, [0, 1, 0, 1])
    length = len(texts[0]) - texts[0][::-1].index(asked[0].config.image_token_id)
    assert read == [(2, length), (4, max(map(len, texts)) - length)]


@pytest.mark.parametrize(
    "questions, shown, options",
    [
        (QUESTIONS[:2], [0, 1], {}),  # nothing to share
        (QUESTIONS, [0, 1, 0, 1], {"num_beams": 2}),
        (QUESTIONS, [0, 1, 0, 1], {"no_repeat_ngram_size": 2}),
    ],
)
def test_where_nothing_can_be_shared_each_question_is_read_whole(asked, questions, shown, options):
    texts, read = ask(asked, questions, shown, **options)
    assert read == [(len(questions) * options.get("num_beams", 1), max(map(len, texts)))]


def test_layers_that_look_back_a_number_of_places_share_nothing(asked, monkeypatch):
    """Padding inside would be among the places that they look back to."""
    monkeypatch.setattr(asked[0].config.text_config, "sliding_window", 8, raising=False)
    kinds = ["sliding_attention"] * asked[0].config.text_config.num_hidden_layers
    monkeypatch.setattr(asked[0].config.text_config, "layer_types", kinds, raising=False)
    assert not can_share(asked[0], GenerationConfig())
