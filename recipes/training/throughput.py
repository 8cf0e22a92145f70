"""What a training run gets through per second, and how much of the hardware's arithmetic that is (MFU)."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from modeling_llava import LlavaConfig
from processing import LlavaProcessor
from processing.encoding import IGNORE
from processing.rows import Tree


# Dense bf16 FLOP/s by the name torch gives the device.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "A6000": 155e12}


@dataclass
class Counts:
    """What a batch brings, known without looking at the device it went to."""

    supervised: int
    tokens: int  # that are no padding
    alone: int  # tokens of the same conversations, were no start shared
    places: int  # with padding
    pairs: int  # of tokens that see each other
    images: int


def count_trees(rows: list[dict[str, list[Tree]]], batch: dict[str, Any], processor: LlavaProcessor) -> Counts:
    image, extra = processor.image_token_id, processor.num_image_tokens - 1
    tokens = alone = pairs = images = 0
    for tree in (tree for row in rows for tree in row["trees"]):
        lengths = [len(ids) + extra * int((ids == image).sum()) for ids in tree.input_ids]
        prefix = tree.prefix + extra * int((tree.input_ids[0][: tree.prefix] == image).sum())
        own = [length - prefix for length in lengths]
        tokens += prefix + sum(own)
        alone += sum(lengths)
        pairs += prefix * (prefix + 1) // 2 + sum(length * (length + 1) // 2 + length * prefix for length in own)
        images += len(tree.images)
    return Counts(supervised_in(batch), tokens, alone, batch["input_ids"].numel(), pairs, images)


def count_padded(batch: dict[str, Any]) -> Counts:
    lengths = batch["attention_mask"].sum(1)
    tokens, pairs = int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())
    images = len(batch["pixel_values"]) if "pixel_values" in batch else 0
    return Counts(supervised_in(batch), tokens, tokens, batch["input_ids"].numel(), pairs, images)


def supervised_in(batch: dict[str, Any]) -> int:
    return int((batch["labels"] != IGNORE).sum())


class Meter:
    """
    Counts batches as they pass. FLOPs are those the model needs, padding and recomputation not counted, attention
    causal: per part 1 for the forward, 1 for the gradient of activations, 1 for that of weights.
    """

    def __init__(self, config: LlavaConfig, stage: str, device: torch.device, tower: int = 1):
        """`tower`: the parts of it that are worked, 3 where it learns, 0 where its features are read from files."""
        self.config, self.stage, self.tower = config, stage, tower
        self.peak = _peak_flops(device)
        self._reset()

    def _reset(self) -> None:
        self.started = time.perf_counter()
        self.wait = 0.0
        self.seen = dict.fromkeys(("supervised", "tokens", "alone", "places", "images"), 0)
        self.flops = 0.0

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    def saw(self, counts: Counts) -> None:
        for name in self.seen:
            self.seen[name] += getattr(counts, name)
        self.flops += self.flops_of(counts)

    def read(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Figures since the last reading, of all processes together; all of them have to call this."""
        seconds = time.perf_counter() - self.started
        own = [*self.seen.values(), self.flops, seconds, self.wait, 1]
        total = torch.tensor(own, dtype=torch.float64)
        if accelerator is not None and accelerator.num_processes > 1:
            total = accelerator.reduce(total.float().to(accelerator.device)).cpu()
        supervised, tokens, alone, places, images, flops, seconds, wait, processes = total.tolist()
        wall = seconds / processes
        figures = {
            "supervised_tokens_per_s": supervised / wall,
            "tokens_per_s": tokens / wall,
            "images_per_s": images / wall,
            "padding": 1 - tokens / max(places, 1),
            "sharing": alone / max(tokens, 1),
            "data_wait": wait / seconds,
        }
        if self.peak is not None:
            figures["mfu"] = flops / seconds / self.peak
        self._reset()
        return {name: round(value, 4) for name, value in figures.items()}

    def flops_of(self, counts: Counts) -> float:
        text, vision = self.config.text_config, self.config.vision_config
        learns = 3 if self.stage == "finetune" else 2  # stage 1 needs no gradient of the language model's weights
        language = layer_weights(text) * text.num_hidden_layers * 2 * counts.tokens
        language += 4 * text.num_attention_heads * _head_width(text) * text.num_hidden_layers * counts.pairs
        head = 2 * text.vocab_size * text.hidden_size * counts.supervised
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        layers = vision.num_hidden_layers - 1
        tower = counts.images * layers * (2 * layer_weights(vision) * patches + 4 * vision.hidden_size * patches**2)
        return learns * (language + head) + self.tower * tower


def layer_weights(config: PreTrainedConfig) -> int:
    """Weights of the matrices of one transformer layer."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    fields = config.to_dict()
    kv_heads = fields.get("num_key_value_heads") or heads
    attention = hidden * _head_width(config) * (2 * heads + 2 * kv_heads)
    if "intermediate_size" not in fields:
        return attention + 2 * hidden * int(hidden * config.mlp_ratio)  # DINOv2
    matrices = 3 if "num_key_value_heads" in fields else 2  # gated or plain
    return attention + matrices * hidden * config.intermediate_size


def _head_width(config: PreTrainedConfig) -> int:
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
