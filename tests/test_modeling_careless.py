"""What the model says when images, tokens and configuration do not go together."""

import re

import pytest
import torch
from transformers import Siglip2VisionConfig

from modeling_llava import LlavaConfig
from tests import tiny
from tests.twins import batch, models


def error(inputs: dict, **changes) -> str:
    with pytest.raises(ValueError) as raised:
        models()[0](**(inputs | changes))
    return str(raised.value)


def test_too_many_images_for_one_sample():
    assert error(batch([1]), pixel_values=tiny.pixels(2)) == (
        "Sample 0 has 4 image tokens but its 2 images give 8 features. Give each image 4 image tokens, as the "
        "processor does."
    )


def test_too_few_images_for_a_batch():
    assert error(batch([1, 0, 2]), pixel_values=tiny.pixels(2)) == (
        "The batch has image tokens for 3 images (sample 0: 1, sample 1: 0, sample 2: 2) but 2 images were given. "
        "Give as many images as the text has places for, in the order of the samples."
    )


def test_an_image_cut_by_truncation():
    inputs = batch([1, 2], "right")
    cut = {key: inputs[key][:, :18] for key in ("input_ids", "attention_mask")}
    assert (cut["input_ids"] == tiny.IMAGE_TOKEN_ID).sum(-1).tolist() == [4, 5]
    assert error(inputs, **cut) == (
        "Sample 1 has 5 image tokens, which is no multiple of the 4 features that one image gives. Give each image "
        "that many image tokens, as the processor does; do not cut them by truncation."
    )


def test_images_cut_so_that_the_sum_is_right():
    ids = torch.tensor([[1, *tiny.image_ids(), tiny.IMAGE_TOKEN_ID], [1, *tiny.image_ids()[1:], 7, 8]])
    assert error({"input_ids": ids, "pixel_values": tiny.pixels(2)}).startswith(
        "Sample 0 has 5 image tokens, which is"
    )


def test_an_error_counts_in_image_tokens_of_embeddings_too():
    inputs = batch([1])
    embeds = models()[0].get_input_embeddings()(inputs.pop("input_ids"))
    assert error(inputs, inputs_embeds=embeds, pixel_values=tiny.pixels(2)).startswith(
        "Sample 0 has 4 image tokens but"
    )


def test_image_tokens_without_images():
    assert error(batch([0, 1, 2]), pixel_values=None) == (
        "Sample 1 has 4 image tokens but no images were given. Pass `pixel_values` or `image_features`."
    )


def test_images_in_two_forms():
    message = (
        "Got images in more than one form. Pass one of `pixel_values`, `image_features` (before the projector) and "
        "`mm_encoder_outputs` (after it)."
    )
    ours, _ = models()
    inputs = batch([1])
    outputs = {"image": ours.get_image_features(inputs["pixel_values"])}
    assert error(inputs, image_features=torch.zeros(1, 4, 32)) == message
    assert error(inputs, mm_encoder_outputs=outputs) == message


def test_ids_and_embeddings():
    message = "Got both or neither of `input_ids` and `inputs_embeds`. Pass exactly one of them."
    assert error(batch([1]), inputs_embeds=torch.zeros(1, 13, 32)) == message
    assert error(batch([1]), input_ids=None) == message


def test_image_sizes():
    assert error(batch([1]), image_sizes=torch.tensor([[28, 28]])) == (
        "Got `image_sizes`, which is for towers with images of varying size (Pixtral); here every image has the size "
        "of the tower. Leave it out, or load such a checkpoint with stock transformers."
    )


@pytest.mark.parametrize("layer", [4, -5, [1, 4]])
def test_a_layer_that_does_not_exist(layer):
    message = (
        f"`vision_feature_layer` is {4 if layer != -5 else -5}, but the vision tower has 3 layers. Choose between -4 "
        "and 3; -2 is the output before the last layer, -1 of the last layer."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny.llava_config(vision_feature_layer=layer)
    assert error(batch([1]), vision_feature_layer=layer) == message
    with pytest.raises(ValueError, match=re.escape(message)):
        models()[0].get_image_features(tiny.pixels(1), vision_feature_layer=layer)


def test_an_unknown_strategy():
    assert error(batch([1]), vision_feature_select_strategy="patch") == (
        "`vision_feature_select_strategy` is `patch`. Choose `default` or `full`."
    )
    with pytest.raises(Exception, match="vision_feature_select_strategy"):
        tiny.llava_config(vision_feature_select_strategy="patch")


def test_an_unknown_projector():
    with pytest.raises(Exception, match="projector_type"):
        tiny.llava_config(projector="mlp2x_gelu")


def test_a_tower_without_class_token_keeps_its_first_patch():
    message = (
        "`vision_feature_select_strategy` is `default`, which drops the class token, but a `siglip_vision_model` has "
        "none: its first patch would be lost. Set `vision_feature_select_strategy` to `full`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny.llava_config("siglip", vision_feature_select_strategy="default")


def test_a_tower_with_images_of_varying_size():
    message = (
        "`vision_config` is a `siglip2_vision_model` (NaFlex: patches of varying number and shape), wanted a tower "
        "with a fixed image size. Use a fixed-resolution SigLIP2 checkpoint, such as "
        "`google/siglip2-so400m-patch14-384`, whose vision config is a `siglip_vision_model`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        LlavaConfig(vision_config=Siglip2VisionConfig(), text_config=tiny.text_config())
