"""Our model and stock transformers' with the same weights, batches for both, and what is watched in them.

Every weight is drawn at random, biases and norms included: a fresh model's zeros and ones hide what is left out.
"""

from functools import cache

import torch
from transformers import LlavaForConditionalGeneration as StockLlava

from modeling_llava import LlavaForConditionalGeneration
from tests import tiny


PROJECTORS = ("linear", "mlp")
TOWERS = ("clip", "siglip")
LANGUAGES = ("llama", "mistral", "qwen2", "gemma")
MATRIX = [(projector, tower, language) for projector in PROJECTORS for tower in TOWERS for language in LANGUAGES]


@cache
def models(projector="mlp", tower="clip", language="llama") -> tuple[LlavaForConditionalGeneration, StockLlava]:
    ours = tiny.randomize(tiny.llava_model(tower, language, projector))
    return ours, tiny.stock_twin(ours)


def batch(num_images: list[int], padding_side: str = "left", seed: int = 0) -> dict:
    """One row per entry, with that many images in it, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i, count in enumerate(num_images):
        words = torch.randint(4, 128, (count + 1, 4 + 2 * i), generator=generator).tolist()
        row = words[0]
        for text in words[1:]:
            row = row + tiny.image_ids() + text
        rows.append([1, *row])
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = [0] * (width - len(row))
        left, right = (padding, []) if padding_side == "left" else ([], padding)
        ids.append(left + row + right)
        mask.append([0] * len(left) + [1] * len(row) + [0] * len(right))
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if sum(num_images):
        inputs["pixel_values"] = tiny.pixels(sum(num_images), seed)
    return inputs


def labels_of(inputs: dict) -> torch.Tensor:
    ids = inputs["input_ids"]
    return ids.masked_fill((inputs["attention_mask"] == 0) | (ids == tiny.IMAGE_TOKEN_ID), -100)


BATCHES = {
    "one image": batch([1]),
    "two images": batch([2]),
    "no image": batch([0]),
    "left-padded": batch([2, 0, 1], "left"),
    "right-padded": batch([2, 0, 1], "right"),
}


def gradients(model, inputs) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model(**inputs, labels=labels_of(inputs)).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@torch.no_grad()
def assert_equal_functions(a, b, inputs=BATCHES["left-padded"]):
    assert torch.equal(a.eval()(**inputs).logits, b.eval()(**inputs).logits)


def blocks_of(model):
    encoder = model.model.vision_tower.encoder
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


def count_calls(modules, hook: str = "register_forward_hook") -> list[int]:
    """How often each module ran, kept up to date."""
    calls = [0] * len(modules)
    for i, module in enumerate(modules):
        getattr(module, hook)(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    return calls


def frozen(model):
    model.model.vision_tower.requires_grad_(False)
    return model
