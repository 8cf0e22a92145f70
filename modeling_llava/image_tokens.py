"""Puts image features where the image tokens are, and says in image tokens what does not fit."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import torch_compilable_check


@dataclass
class PromptImages(BaseModelOutputWithPooling):
    """Projected images, with the number of image tokens in each row of their prompt.

    Image tokens after these are the model's own words, or guesses of prompt lookup, and no places for images.
    """

    num_image_tokens: torch.Tensor | None = None  # (rows,)

    def in_prompt(self, is_image: torch.Tensor) -> torch.Tensor:
        if self.num_image_tokens is None:
            return is_image
        counts = self.num_image_tokens.to(is_image.device)
        counts = counts.repeat_interleave(len(is_image) // len(counts))  # beams of one prompt are neighbours
        return is_image & (is_image.cumsum(-1) <= counts[:, None])


def uncached_prompt(
    inputs: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    **_,
) -> torch.Tensor | None:
    """What `generate` will read of a prompt, which may or may not repeat what is in the cache."""
    input_ids = input_ids if inputs is None else inputs
    if input_ids is None or inputs_embeds is not None:
        return None
    if past_key_values is None or (attention_mask is not None and attention_mask.shape[1] > input_ids.shape[1]):
        return input_ids
    return input_ids[:, int(past_key_values.get_seq_length()) :]


def splice(
    inputs_embeds: torch.Tensor, is_image: torch.Tensor, image_embeds: torch.Tensor, whole: bool = True
) -> torch.Tensor:
    """`image_embeds`, (images, tokens per image, hidden), at the places `is_image`, (batch, seq), in their order.

    Each sample has `whole` images, except in a prefill in chunks, which gives what falls into a chunk as one image.
    """
    num_images, tokens_per_image = image_embeds.shape[:2]
    per_sample = is_image.sum(-1)
    fits = per_sample.sum() == num_images * tokens_per_image
    if whole:
        fits &= (per_sample % tokens_per_image == 0).all()
    torch_compilable_check(fits, lambda: mismatch_message(per_sample.tolist(), num_images, tokens_per_image))
    image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), image_embeds)


def check_one_form(pixel_values, image_features, projected):
    if sum(form is not None for form in (pixel_values, image_features, projected)) > 1:
        raise ValueError(
            "Got images in more than one form. Pass one of `pixel_values`, `image_features` (before the projector) "
            "and `mm_encoder_outputs` (after it)."
        )


def check_no_image_tokens(input_ids: torch.Tensor, image_token_id: int):
    counts = (input_ids == image_token_id).sum(-1).tolist()
    if any(counts):
        sample = next(i for i, count in enumerate(counts) if count)
        raise ValueError(
            f"Sample {sample} has {counts[sample]} image tokens but no images were given. Pass `pixel_values` or "
            "`image_features`."
        )


def mismatch_message(tokens_per_sample: list[int], num_images: int, tokens_per_image: int) -> str:
    """What is wrong with the number of image tokens, in image tokens and naming the sample where one stands out."""
    if len(tokens_per_sample) == 1:
        return (
            f"Sample 0 has {tokens_per_sample[0]} image tokens but its {num_images} images give "
            f"{num_images * tokens_per_image} features. Give each image {tokens_per_image} image tokens, as the "
            "processor does."
        )
    for sample, count in enumerate(tokens_per_sample):
        if count % tokens_per_image:
            return (
                f"Sample {sample} has {count} image tokens, which is no multiple of the {tokens_per_image} features "
                "that one image gives. Give each image that many image tokens, as the processor does; do not cut them "
                "by truncation."
            )
    counts = ", ".join(f"sample {i}: {count // tokens_per_image}" for i, count in enumerate(tokens_per_sample))
    return (
        f"The batch has image tokens for {sum(tokens_per_sample) // tokens_per_image} images ({counts}) but "
        f"{num_images} images were given. Give as many images as the text has places for, in the order of the samples."
    )
