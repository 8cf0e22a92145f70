"""What a tower's image processor becomes: `pad` is LLaVA's arithmetic, `square` the tower's own."""

import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from processing.images import image_processor_for, image_side
from tests.pictures import noise


pytestmark = pytest.mark.filterwarnings("error")  # whatever Pillow warns of is ours to settle

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [
    (60, 40),
    (40, 60),
    (41, 41),
    (28, 28),
    (7, 13),
    (61, 17),
    (17, 62),
    (300, 7),
    (1, 1),
    (1, 2),
    (99, 1),
    (1, 99),
]


def original_pad(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """LLaVA's `expand2square`, to the mean colour of the tower."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def original_clip(image: Image.Image, side: int, crop: int, mean=CLIP_MEAN, std=CLIP_STD) -> np.ndarray:
    """What the CLIP image processor of LLaVA's time made of an RGB image: (3, crop, crop), float32."""
    short, long = sorted(image.size)
    long = int(side * long / short)
    image = image.resize((side, long) if image.width <= image.height else (long, side), Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    values = np.array(image.crop((left, top, left + crop, top + crop)))
    values = (values * (1 / 255)).astype(np.float32)  # multiplied in float64
    values = (values - np.array(mean, np.float32)) / np.array(std, np.float32)
    return values.transpose(2, 0, 1)


def pixel_values(processor, image: Image.Image) -> np.ndarray:
    return processor(image, return_tensors="np")["pixel_values"][0]


def clip(side=28, crop=28) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": crop, "width": crop})


def siglip(side=28) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": side, "width": side})


def dinov2() -> BitImageProcessorPil:
    return BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


@pytest.mark.parametrize("size", SIZES)
def test_square_and_pad_equal_the_originals_arithmetic(size):
    image = noise(*size)  # noise, so that a pixel's shift or rounding shows
    square, pad = image_processor_for(clip(), "square"), image_processor_for(clip(), "pad")
    # Equal bit for bit, not only to a rounding.
    np.testing.assert_array_equal(pixel_values(square, image), original_clip(image, 28, 28))
    np.testing.assert_array_equal(pixel_values(pad, image), original_clip(original_pad(image, CLIP_MEAN), 28, 28))
    assert pixel_values(pad, image).dtype == np.float32
    assert pixel_values(pad, image).shape == (3, 28, 28)


def test_pad_at_the_size_of_llava_15():
    tower = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    image = noise(640, 427)
    found = pixel_values(image_processor_for(tower, "pad"), image)
    np.testing.assert_array_equal(found, original_clip(original_pad(image, CLIP_MEAN), 336, 336))
    padding = np.array([122, 116, 104]) / 255
    np.testing.assert_allclose(found[:, 0, 0], (padding - CLIP_MEAN) / CLIP_STD, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_pad_works_for_towers_without_a_crop(size):
    image = noise(*size)
    half = (0.5, 0.5, 0.5)
    squared = original_pad(image, half)
    assert squared.size[0] == max(size)
    pad = image_processor_for(siglip(), "pad")
    np.testing.assert_array_equal(pixel_values(pad, image), original_clip(squared, 28, 28, half, half))
    np.testing.assert_array_equal(pixel_values(pad, image), pixel_values(siglip(), squared))


def test_pad_keeps_a_tower_that_resizes_to_more_than_it_crops():
    image = noise(60, 40)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pad = image_processor_for(dinov2(), "pad")
    np.testing.assert_array_equal(
        pixel_values(pad, image), original_clip(original_pad(image, mean), 32, 28, mean, std)
    )


def test_square_is_the_towers_own_processor():
    for tower in (clip(), siglip(), dinov2()):
        assert image_processor_for(tower, "square") is tower


def test_pad_carries_what_the_tower_was_told():
    tower = clip()
    tower.resample, tower.do_normalize, tower.rescale_factor = 2, False, 1 / 127.5
    before = tower.to_dict()
    pad = image_processor_for(tower, "pad")
    assert type(pad) is LlavaImageProcessorPil
    assert pad.to_dict() == before | {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    assert tower.to_dict() == before
    assert image_processor_for(pad, "pad").to_dict() == pad.to_dict()
    assert image_processor_for(siglip(), "pad").do_center_crop is False


@pytest.mark.parametrize("make_tower", [clip, siglip, dinov2])
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_every_image_comes_out_at_the_stated_side(make_tower, aspect):
    processor = image_processor_for(make_tower(), aspect)
    assert image_side(processor) == (28, 28)
    for size in ((60, 40), (3, 50)):
        assert pixel_values(processor, noise(*size)).shape == (3, 28, 28)


def test_the_stated_side_is_height_then_width():
    assert image_side(CLIPImageProcessorPil(crop_size={"height": 20, "width": 30})) == (20, 30)
    assert image_side(SiglipImageProcessorPil(size={"height": 20, "width": 30})) == (20, 30)


def test_towers_that_cannot_have_the_aspect_are_refused():
    def refused_tower(tower, *parts, aspect="pad"):
        with pytest.raises(ValueError) as caught:
            image_processor_for(tower, aspect)
        for part in parts:
            assert part in str(caught.value)

    oblong = CLIPImageProcessorPil(crop_size={"height": 20, "width": 30})
    for aspect in ("square", "pad"):
        refused_tower(oblong, "`CLIPImageProcessorPil` gives images of 20 x 30", "wanted a square", aspect=aspect)
        no_crop = CLIPImageProcessorPil(do_center_crop=False)
        refused_tower(
            no_crop, "no fixed size", "'size': {'shortest_edge': 224}", "'do_center_crop': False", aspect=aspect
        )
        refused_tower(ConvNextImageProcessorPil(), "no fixed size", "{'shortest_edge': 384}", aspect=aspect)
        refused_tower(SiglipImageProcessorPil(do_resize=False), "no fixed size", "'do_resize': False", aspect=aspect)
    refused_tower(EfficientNetImageProcessorPil(), "does more than resize, crop, rescale and normalize")
    one_mean = clip()
    one_mean.image_mean = 0.5
    refused_tower(one_mean, "`image_mean` 0.5; wanted three numbers")
    refused_tower(clip(), "Aspect `anyres` is not known; wanted `square` or `pad`", aspect="anyres")
    refused_tower(image_processor_for(clip(), "pad"), "has `do_pad` set", aspect="square")


def stock_processor(image_processor) -> LlavaProcessor:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<image>": 1, "what": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("make_tower", [clip, siglip, dinov2])
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_a_stock_processor_saves_and_loads_it(make_tower, aspect, tmp_path):
    image_processor = image_processor_for(make_tower(), aspect)
    stock_processor(image_processor).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    # Without its suffix: each backend's Auto class finds its own by this name.
    assert saved["image_processor_type"] + "Pil" == type(image_processor).__name__

    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is LlavaProcessor
    image = noise(60, 40)
    for loaded in (
        processor.image_processor,
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
    ):
        assert type(loaded) is type(image_processor)
        assert loaded.to_dict() == image_processor.to_dict()
        np.testing.assert_array_equal(pixel_values(loaded, image), pixel_values(image_processor, image))
    inputs = processor(images=image, text="what <image>")
    assert inputs["input_ids"] == [[2, 1, 1, 1, 1]]
    if (
        aspect == "pad"
    ):  # what vLLM and others count tokens with; of SigLIP's own processor stock LLaVA finds no crop size
        assert processor._get_num_multimodal_tokens([(40, 60)])["num_image_tokens"] == [4]
