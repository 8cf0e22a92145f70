"""What a training run gets through per second, and how much of the hardware's arithmetic that is (MFU)."""

import time
from typing import Any

import torch
from transformers import PreTrainedConfig

from modeling_llava import LlavaConfig


# Dense bf16 FLOP/s by the name torch gives the device.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "A6000": 155e12}


class Meter:
    """
    Counts rows as they pass. FLOPs are those the model needs, padding and recomputation not counted, attention causal:
    per part 1 for the forward, 1 for the gradient of activations, 1 for that of weights.
    """

    def __init__(self, config: LlavaConfig, stage: str, train_vision: bool = False):
        self.config, self.stage, self.train_vision = config, stage, train_vision
        self.peak = _peak_flops()
        self._reset()

    def _reset(self) -> None:
        self.started = time.perf_counter()
        self.wait = 0.0
        self.supervised = self.tokens = self.places = self.images = 0
        self.flops = 0.0

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    def saw(self, inputs: dict[str, Any]) -> None:
        supervised = int((inputs["labels"] != -100).sum())
        images = len(inputs["pixel_values"]) if "pixel_values" in inputs else 0
        tokens, pairs = _tokens_and_pairs(inputs)
        self.supervised += supervised
        self.images += images
        self.tokens += tokens
        self.places += inputs["input_ids"].numel()
        self.flops += self._flops(tokens, pairs, supervised, images)

    def read(self) -> dict[str, float]:
        """Figures since the last reading, of this process."""
        seconds = time.perf_counter() - self.started
        figures = {
            "supervised_tokens_per_s": self.supervised / seconds,
            "tokens_per_s": self.tokens / seconds,
            "images_per_s": self.images / seconds,
            "padding": 1 - self.tokens / max(self.places, 1),
            "data_wait": self.wait / seconds,
        }
        if self.peak is not None:
            figures["mfu"] = self.flops / seconds / self.peak
        self._reset()
        return {name: round(value, 4) for name, value in figures.items()}

    def _flops(self, tokens: int, pairs: int, supervised: int, images: int) -> float:
        text, vision = self.config.text_config, self.config.vision_config
        learns = 3 if self.stage == "finetune" else 2  # stage 1 needs no gradient of the language model's weights
        language = layer_weights(text) * text.num_hidden_layers * 2 * tokens
        language += 4 * text.num_attention_heads * _head_width(text) * text.num_hidden_layers * pairs
        head = 2 * text.vocab_size * text.hidden_size * supervised
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        layers = vision.num_hidden_layers - 1
        tower = images * layers * (2 * layer_weights(vision) * patches + 4 * vision.hidden_size * patches**2)
        return learns * (language + head) + (3 if self.train_vision else 1) * tower


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


def _tokens_and_pairs(inputs: dict[str, Any]) -> tuple[int, int]:
    """Tokens that are no padding, and pairs of tokens that see each other."""
    if "segments" in inputs:
        _, start, end, prefix_start, prefix_end = inputs["segments"].T
        own, prefix = end - start, (prefix_end - prefix_start).clamp(min=0)
        return int(own.sum()), int((own * (own + 1) // 2 + own * prefix).sum())
    if "cu_seq_q" in inputs:
        own = inputs["cu_seq_q"].diff().long()
        prefix = inputs["cu_seq_k"].diff().long() - own
        return int(own.sum()), int((own * (own + 1) // 2 + own * prefix).sum())
    if "end" in inputs:
        reach = inputs["end"] - torch.arange(inputs["end"].shape[1], device=inputs["end"].device)
        real = inputs["input_ids"].new_tensor(reach.shape).prod()
        return int(real), int(reach.sum())
    lengths = inputs["attention_mask"].sum(1)
    return int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())


def _peak_flops() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
