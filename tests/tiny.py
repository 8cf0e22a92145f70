"""Tiny models and tokenizers, built in code: 2 or 3 layers, 32 wide, 4 patches an image, a few hundred words."""

import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers import LlavaConfig as StockLlavaConfig
from transformers import LlavaForConditionalGeneration as StockLlavaForConditionalGeneration

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration


IMAGE_TOKEN_ID = 3
IMAGE_SIZE, PATCH_SIZE = 28, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2

TOWERS = {
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
}
LANGUAGE_MODELS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "phi3": Phi3Config,
}


def vision_config(tower: str = "clip", **changes):
    fields = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    if tower.startswith("dinov2"):
        fields.pop("intermediate_size")
    return TOWERS[tower](**(fields | changes))


def text_config(language: str = "llama", vocab_size: int = 128, **changes):
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if language in ("gemma", "gemma2", "qwen3"):
        fields["head_dim"] = 8
    return LANGUAGE_MODELS[language](**(fields | changes))


def llava_config(
    tower: str = "clip", language: str = "llama", projector: str = "mlp", vocab_size: int = 128, **changes
):
    fields = {
        "vision_config": vision_config(tower),
        "text_config": text_config(language, vocab_size),
        "image_token_index": IMAGE_TOKEN_ID,
        "image_seq_length": NUM_PATCHES,
        "projector_type": projector,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full" if tower == "siglip" else "default",
    }
    return LlavaConfig(**(fields | changes))


def llava_model(*args, seed: int = 0, **kwargs) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(llava_config(*args, **kwargs)).eval()


@torch.no_grad()
def randomize(model, seed: int = 1):
    """Draws every weight anew and larger, biases and norms too: a fresh model hides what its zeros and ones touch."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if model.config.projector_type == "linear" and "linear_2" in name:
            continue  # stays the identity
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.2 if parameter.ndim > 1 else parameter + noise * 0.1)
    return model


def stock_twin(model: LlavaForConditionalGeneration) -> StockLlavaForConditionalGeneration:
    """The stock class with the same configuration and the same weights."""
    stock = StockLlavaForConditionalGeneration(StockLlavaConfig.from_dict(model.config.to_dict())).eval()
    stock.load_state_dict(model.state_dict())
    return stock


def image_ids(num_images: int = 1, tokens_per_image: int = NUM_PATCHES) -> list[int]:
    return [IMAGE_TOKEN_ID] * (num_images * tokens_per_image)


def pixels(num_images: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
