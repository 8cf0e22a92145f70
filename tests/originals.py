"""Checkpoints of the original, written in its documented layout, and the logits that they have.

These are computed by hand from the original's tensors: CLIP, `nn.Sequential`, splice, Llama.
"""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers import LlavaForConditionalGeneration as StockLlava

from modeling_llava import LlavaForConditionalGeneration
from tests.tiny import IMAGE_SIZE, pixels, vision_config


VISION_WIDTH, TEXT_WIDTH, VOCAB = 24, 32, 400
IMAGE = -200  # what stands for an image in the original's ids
SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant. USER: What is it? ASSISTANT: A cat.",
    "### Human: Why does it purr? ### Assistant: the quick brown fox jumps over the lazy dog, and so on.",
] * 20


@pytest.fixture(scope="module")
def spm(tmp_path_factory) -> Path:
    """A tokenizer.model as those of Llama and Vicuna: BPE, bytes for what is unknown, a space put before a text."""
    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(prefix),
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("clip")
    CLIPVisionModel(vision_config("clip", hidden_size=VISION_WIDTH)).save_pretrained(directory)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory, spm) -> Path:
    """The language model alone, as Vicuna is published."""
    directory = tmp_path_factory.mktemp("vicuna")
    language_model(seed=2).save_pretrained(directory)
    write_tokenizer(directory, spm)
    return directory


def language_fields(vocab_size: int = VOCAB) -> dict:
    return {
        "vocab_size": vocab_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def language_model(seed: int, kind: str = "llama", vocab_size: int = VOCAB) -> nn.Module:
    torch.manual_seed(seed)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[kind]
    model = model_class(config_class(**language_fields(vocab_size))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # logits far apart, norms that are not 1
    return model


def projector_tensors(kind: str, seed: int = 3, prefix: str = "model.mm_projector.") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shapes = {"": (TEXT_WIDTH, VISION_WIDTH)}
    if kind == "mlp2x_gelu":
        shapes = {"0.": (TEXT_WIDTH, VISION_WIDTH), "2.": (TEXT_WIDTH, TEXT_WIDTH)}
    tensors = {}
    for layer, shape in shapes.items():
        tensors[f"{prefix}{layer}weight"] = torch.randn(shape) / shape[1] ** 0.5
        tensors[f"{prefix}{layer}bias"] = torch.randn(shape[0])
    return tensors


def original_config(tower: Path, kind: str = "mlp2x_gelu", vocab_size: int = VOCAB, **changes) -> dict:
    fields = language_fields(vocab_size) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "image_aspect_ratio": "pad",
        "max_length": 4096,
        "mm_hidden_size": VISION_WIDTH,
        "mm_projector_type": kind,
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
    }
    fields |= changes
    return {key: value for key, value in fields.items() if value != "absent"}


def write_json(file: Path, value):
    file.write_text(json.dumps(value))


def write_tokenizer(directory: Path, spm: Path, added: dict | None = None, **settings):
    (directory / "tokenizer.model").write_bytes(spm.read_bytes())
    tokens = {
        name: {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True, "rstrip": False}
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    fields = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "pad_token": None}
    fields |= {"model_max_length": 2048, "padding_side": "right", "sp_model_kwargs": {}}
    write_json(directory / "tokenizer_config.json", tokens | fields | settings)
    plain = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_json(directory / "special_tokens_map.json", plain)
    if added:
        write_json(directory / "added_tokens.json", added)


def write_weights(directory: Path, tensors: dict[str, torch.Tensor], form: str):
    tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    if form == "bin":
        torch.save(tensors, directory / "pytorch_model.bin")
    elif form == "safetensors":
        save_file(tensors, directory / "model.safetensors")
    else:
        keys = list(tensors)
        halves = {"pytorch_model-00001-of-00002.bin": keys[::2], "pytorch_model-00002-of-00002.bin": keys[1::2]}
        for name, half in halves.items():
            torch.save({key: tensors[key] for key in half}, directory / name)
        weight_map = {key: name for name, half in halves.items() for key in half}
        write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def write_full(directory: Path, spm: Path, tower: Path, form="bin", kind="mlp2x_gelu", language="llama", **changes):
    """A full checkpoint; returns its config and tensors."""
    directory.mkdir(exist_ok=True)
    config = original_config(tower, kind, **changes)
    tensors = language_model(4, language, config["vocab_size"]).state_dict() | projector_tensors(kind)
    write_json(directory / "config.json", config)
    write_weights(directory, tensors, form)
    write_tokenizer(directory, spm)
    return config, tensors


def features_by_hand(tensors: dict, config: dict, pixel_values: torch.Tensor) -> torch.Tensor:
    tower = CLIPVisionModel.from_pretrained(config["mm_vision_tower"]).eval()
    prefix = "model.vision_tower.vision_tower.vision_model."
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if own:
        own.pop("embeddings.position_ids")
        tower.load_state_dict(own)
    hidden = tower(pixel_values, output_hidden_states=True).hidden_states[config["mm_vision_select_layer"]]
    features = hidden if config["mm_vision_select_feature"] == "cls_patch" else hidden[:, 1:]

    first = nn.Linear(VISION_WIDTH, TEXT_WIDTH)
    projector = nn.Sequential(first, nn.GELU(), nn.Linear(TEXT_WIDTH, TEXT_WIDTH))
    if config.get("mm_projector_type", "linear") == "linear":
        projector = first
    inner = {k.rpartition("mm_projector.")[2]: tensor for k, tensor in tensors.items() if "mm_projector." in k}
    projector.load_state_dict(inner)
    return projector(features)


@torch.no_grad()
def logits_by_hand(tensors: dict, config: dict, ids: list[int], pixel_values: torch.Tensor) -> torch.Tensor:
    """The original's forward: the embedded pieces of text with the projected features between them."""
    is_mistral = "LlavaMistralForCausalLM" in config["architectures"]
    language = {k: t for k, t in tensors.items() if k.startswith(("model.layers", "model.embed", "model.norm", "lm_"))}
    language = {key: tensor for key, tensor in language.items() if "inv_freq" not in key}
    model = language_model(0, "mistral" if is_mistral else "llama", len(language["lm_head.weight"]))
    model.load_state_dict(language)
    images = iter(features_by_hand(tensors, config, pixel_values))
    pieces = [next(images) if i == IMAGE else model.model.embed_tokens(torch.tensor([i])) for i in ids]
    return model(inputs_embeds=torch.cat(pieces)[None]).logits[0]


@torch.no_grad()
def logits_of(directory: Path, model_class, ids: list[int], pixel_values: torch.Tensor) -> torch.Tensor:
    model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
    image = [model.config.image_token_id] * model.config.image_seq_length
    ids = [token for i in ids for token in (image if i == IMAGE else [i])]
    return model(input_ids=torch.tensor([ids]), pixel_values=pixel_values).logits[0]


def assert_same_function(directory: Path, tensors: dict, config: dict):
    ids = [1, 20, 21, IMAGE, 30, 31, 2, 40, IMAGE, 350]
    wanted = logits_by_hand(tensors, config, ids, pixels(2))
    assert wanted.std() > 0.1
    for model_class in (LlavaForConditionalGeneration, StockLlava):
        logits = logits_of(directory, model_class, ids, pixels(2))
        torch.testing.assert_close(logits[:, : wanted.shape[1]], wanted, atol=1e-5, rtol=0)


def write_lora(directory: Path, tower: Path, base_tensors: dict, form: str = "bin") -> tuple[dict, dict]:
    """An adapter directory; returns the config and the tensors of the merged model, computed by hand."""
    directory.mkdir()
    torch.manual_seed(5)
    model = language_model(0)
    model.load_state_dict(base_tensors)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, lora)
    adapter = {
        key.replace(".default", ""): torch.randn_like(tensor) * 0.2
        for key, tensor in wrapped.state_dict().items()
        if "lora_" in key
    }
    merged = dict(base_tensors)
    for key, matrix in adapter.items():
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            merged[name] = merged[name] + (8 / 4) * adapter[key.replace("lora_A", "lora_B")] @ matrix
    assert len(adapter) == 2 * 7 * 2
    if form == "bin":
        torch.save(adapter, directory / "adapter_model.bin")
    else:
        save_file(adapter, directory / "adapter_model.safetensors")
    # The fields that peft 0.4, of the time of the original, wrote.
    old = {"base_model_name_or_path": "lmsys/vicuna-7b-v1.5", "bias": "none", "fan_in_fan_out": False}
    old |= {"inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "modules_to_save": None}
    old |= {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "revision": None}
    write_json(directory / "adapter_config.json", old | {"target_modules": targets, "task_type": "CAUSAL_LM"})
    config = original_config(tower)
    write_json(directory / "config.json", config)
    projector = projector_tensors("mlp2x_gelu", prefix="base_model.model.model.mm_projector.")
    torch.save(projector, directory / "non_lora_trainables.bin")
    return config, merged | projector
