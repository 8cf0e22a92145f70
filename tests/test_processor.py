"""The processor: the stock one's behaviour and files, pictures and conversations matched, images counted unopened."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers import LlavaProcessor as StockLlavaProcessor

from processing import ConversationError, ImageError, LlavaProcessor
from tests import tiny_text
from tests.tiny import IMAGE_SIZE, NUM_PATCHES


RED, BLUE = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (20, 30), "blue")
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
LESSON = [*QUESTION, {"role": "assistant", "content": "Red."}]


@pytest.fixture
def processor():
    return tiny_text.processor()


def test_files_are_those_of_stock_and_load_in_both(processor, tmp_path):
    processor.save_pretrained(tmp_path / "ours")
    stock = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(stock) is StockLlavaProcessor
    stock.save_pretrained(tmp_path / "stock")

    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "stock").iterdir())
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "stock" / name).read_text()
    assert json.loads((tmp_path / "ours/processor_config.json").read_text())["processor_class"] == "LlavaProcessor"

    again = LlavaProcessor.from_pretrained(tmp_path / "stock")
    assert again.num_image_tokens == processor.num_image_tokens
    assert (
        again.encode(QUESTION, [RED])["input_ids"].tolist() == processor.encode(QUESTION, [RED])["input_ids"].tolist()
    )


def test_call_equals_stock(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    stock = StockLlavaProcessor.from_pretrained(tmp_path)
    call = {"text": ["<image> one", "<image> and <image>"], "images": [RED, BLUE, RED], "padding": True}
    ours, theirs = processor(**call, return_tensors="pt"), stock(**call, return_tensors="pt")
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key])


def test_encode_equals_the_stock_chat_template(processor):
    ours = processor.encode(QUESTION, [RED])
    chat = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}]}]
    stock = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    for key in ours:
        assert torch.equal(ours[key], stock[key])


def test_encode_for_training_has_labels_and_pixels(processor):
    inputs = processor.encode(LESSON, [RED], for_training=True)
    assert inputs["input_ids"].shape == inputs["labels"].shape == inputs["attention_mask"].shape
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    supervised = inputs["labels"][inputs["labels"] != -100]
    assert processor.tokenizer.decode(supervised) == "Red.</s>"


def test_encode_takes_pictures_inside_their_places(processor):
    chat = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}]}]
    assert torch.equal(processor.encode(chat)["pixel_values"], processor.encode(QUESTION, [RED])["pixel_values"])


def test_text_only_has_no_pixels(processor):
    assert "pixel_values" not in processor.encode([{"role": "user", "content": "Hi"}])


def test_truncation_drops_the_pictures_of_dropped_turns(processor):
    messages = [*LESSON, *QUESTION, {"role": "assistant", "content": "Blue."}]
    length = processor.encode_text(LESSON, for_training=True).input_ids
    inputs = processor.encode(messages, [RED, BLUE], for_training=True, max_length=len(length))
    assert inputs["pixel_values"].shape[0] == 1
    assert inputs["input_ids"].shape[1] == len(length)


@pytest.mark.parametrize(
    "strategy, extra, expected", [("default", 1, 4), ("full", 1, 5), ("full", 0, 4), ("default", 5, 8)]
)
def test_image_tokens_are_counted_without_a_picture(processor, strategy, extra, expected):
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = strategy, extra
    assert processor.num_image_tokens == expected
    assert processor(text="<image>", images=RED)["input_ids"][0].count(processor.image_token_id) == expected
    assert processor.encode_text(QUESTION).input_ids.count(processor.image_token_id) == expected


@pytest.mark.parametrize(
    "messages, images, words",
    [
        (QUESTION, [], "sample 7 has 1 image places but 0 images"),
        (QUESTION, [RED, BLUE], "sample 7 has 1 image places but 2 images"),
        ([{"role": "user", "content": "Hi"}], [RED], "sample 7 has 0 image places but 1 images"),
        (
            [{"role": "user", "content": [{"type": "image", "image": RED}]}],
            [RED],
            "sample 7 has 1 pictures inside its image places and 1 in `images`",
        ),
        ({"messages": QUESTION}, [RED], "sample 7 is a dict, wanted its list of messages"),
    ],
)
def test_pictures_and_places_must_match(processor, messages, images, words):
    with pytest.raises(ConversationError) as error:
        processor.encode(messages, images, name="sample 7")
    assert str(error.value).startswith(words)


def test_a_broken_picture_is_named(processor, tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>gone</html>")
    with pytest.raises(ImageError, match="Image `1` of sample 7"):
        processor.encode(
            [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}], [RED, str(path)], name="sample 7"
        )
    with pytest.raises(ImageError, match="page.jpg"):
        processor(text="<image>", images=str(path))


@pytest.mark.parametrize("images", [RED, "cat.jpg", torch.zeros(1, 3, 4, 4)])
def test_a_single_picture_wants_a_list(processor, images):
    with pytest.raises(ConversationError, match="wanted a list. Put a single one into a list too"):
        processor.encode(QUESTION, images)


def test_max_length_is_for_training(processor):
    with pytest.raises(ValueError, match="goes with `for_training=True`"):
        processor.encode(QUESTION, [RED], max_length=100)


def test_no_chat_template_says_what_to_do(processor):
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no chat template. Set"):
        processor.encode(QUESTION, [RED])


def test_image_tokens_equal_what_the_model_wants(processor):
    assert processor.num_image_tokens == NUM_PATCHES
