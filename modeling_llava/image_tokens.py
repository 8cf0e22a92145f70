"""Puts image features where the image tokens are, and says in image tokens what does not fit."""

import torch
from transformers.utils import torch_compilable_check


def splice(inputs_embeds: torch.Tensor, is_image: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
    """`image_embeds`, (images, tokens per image, hidden), at the places `is_image`, (batch, seq), in their order."""
    num_images, tokens_per_image = image_embeds.shape[:2]
    torch_compilable_check(
        is_image.sum() == num_images * tokens_per_image,
        lambda: mismatch_message(is_image.sum(-1).tolist(), num_images, tokens_per_image),
    )
    image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), image_embeds)


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
