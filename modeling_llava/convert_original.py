"""Tensors and configs of the original LLaVA to those of this project, and the projector back: dicts in, dicts out.

What is known of the original's layout is here and nowhere else. Files, base models and tokenizers are the business of
`recipes/convert.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig


Tensors = dict[str, torch.Tensor]

LANGUAGE_CONFIGS = {
    "LlavaLlamaForCausalLM": LlamaConfig,
    "LlavaMistralForCausalLM": MistralConfig,
    "llava": LlamaConfig,
    "llava_llama": LlamaConfig,
    "llava_mistral": MistralConfig,
}
# `mm_projector_type` -> `projector_type`, and the layers of its `nn.Sequential` -> those of the stock projector.
PROJECTOR_TYPES = {"linear": "linear", "mlp2x_gelu": "mlp"}
PROJECTOR_LAYERS = {"linear": {"": "linear_1."}, "mlp": {"0.": "linear_1.", "2.": "linear_2."}}
ORIGINAL_PREFIX = "model.mm_projector."

# Widths of the towers and language models that LLaVAs are made of, so that an error can name what would fit.
KNOWN_TOWERS = {
    768: "CLIP ViT-B",
    1024: "CLIP ViT-L/14",
    1152: "SigLIP so400m",
    1280: "CLIP ViT-H/14",
    1664: "CLIP ViT-bigG/14",
}
KNOWN_LANGUAGE_MODELS = {
    2048: "a 1B Llama such as TinyLlama-1.1B",
    3200: "a 3B Llama such as open_llama_3b",
    4096: "a 7B Llama such as vicuna-7b",
    5120: "a 13B Llama such as vicuna-13b",
    6656: "a 33B Llama such as vicuna-33b",
    8192: "a 70B Llama",
}


@dataclass
class Facts:
    """What an original config.json says beyond its language model. `assumed`: what it does not say."""

    projector_type: str | None
    vision_tower: str | None
    vision_feature_layer: int
    keeps_class_token: bool
    aspect: str
    has_image_start_end: bool
    max_length: int | None
    assumed: list[str] = field(default_factory=list)


@dataclass
class Parts:
    """Tensors of one original checkpoint by part, under the names each part has alone. `left_out`: name -> why."""

    language: Tensors
    projector: Tensors
    vision: Tensors
    left_out: dict[str, str]


def is_original(config: Mapping) -> bool:
    return "text_config" not in config and any(key.startswith("mm_") for key in config)


FACTS = (
    ("mm_vision_tower", str, "a Hub id or directory"),
    ("mm_vision_select_layer", int, "the number of a layer"),
    ("tokenizer_model_max_length", int, "a number of tokens"),
)


def read_facts(config: Mapping, name: str) -> Facts:
    """The facts in an original config.json; what this project's classes cannot compute is refused here."""
    projector = config.get("mm_projector_type", "linear") if config else None
    if projector is not None and projector not in PROJECTOR_TYPES:
        raise ValueError(
            f"`{name}` has a projector of type `{projector}`, wanted `linear` or `mlp2x_gelu`. The stock LLaVA class "
            "has exactly two projector layers with one activation between them, so no other projector can be stored "
            "in its format."
        )
    aspect = config.get("image_aspect_ratio") or "square"
    merge = config.get("mm_patch_merge_type") or "flat"
    if aspect not in ("pad", "square") or merge != "flat":
        raise ValueError(
            f"`{name}` says `image_aspect_ratio: {aspect}` and `mm_patch_merge_type: {merge}`, wanted `pad` or "
            "`square`, and `flat`. Pictures cut into tiles (LLaVA-1.6, anyres) are another architecture: "
            "`LlavaNextForConditionalGeneration` of transformers, with the `llava-hf/llava-v1.6-*` checkpoints."
        )
    for key, what in (("s2", "several scales of each picture, joined in width"), ("mm_resampler_type", "a resampler")):
        if config.get(key):
            raise ValueError(
                f"`{name}` says `{key}: {config[key]}` ({what}), for which the stock LLaVA class has no place."
            )
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(f"`{name}` says `mm_vision_select_feature: {feature}`, wanted `patch` or `cls_patch`.")

    for key, kind, wanted in FACTS:
        if not isinstance(value := config.get(key), kind | None):
            raise ValueError(f"`{name}` says `{key}: {value!r}`, wanted {wanted}. Give its original config.json.")

    facts = Facts(
        projector_type=PROJECTOR_TYPES.get(projector),
        vision_tower=config.get("mm_vision_tower") or config.get("vision_tower"),
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        keeps_class_token=feature == "cls_patch",
        aspect=aspect,
        has_image_start_end=bool(config.get("mm_use_im_start_end")),
        max_length=config.get("tokenizer_model_max_length"),
    )
    if "mm_vision_select_layer" not in config:
        facts.assumed.append("`mm_vision_select_layer` is -2, as in every training script of the original")
    if not config.get("image_aspect_ratio"):
        facts.assumed.append("`image_aspect_ratio` is `square`, the original's default")
    return facts


SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def language_config(config: Mapping, name: str) -> PreTrainedConfig:
    """The config of the language model alone. `AutoConfig` would take these keys for those of a stock LLaVA."""
    kinds = [*(config.get("architectures") or []), config.get("model_type")]
    config_class = next((LANGUAGE_CONFIGS[kind] for kind in kinds if kind in LANGUAGE_CONFIGS), None)
    if config_class is None or any("MPT" in str(kind).upper() for kind in kinds):
        raise ValueError(
            f"`{name}` is a {', '.join(f'`{kind}`' for kind in kinds)}; a Llama (`LlavaLlamaForCausalLM`) or a "
            "Mistral (`LlavaMistralForCausalLM`) inside an original LLaVA can be converted. For another language "
            "model, convert its projector alone with `--base`."
        )
    known = {*config_class.__dataclass_fields__, "rope_theta", "rope_scaling"} - {
        "transformers_version",
        "architectures",
    }
    fields = {key: value for key, value in config.items() if key in known}
    if fields.get("pad_token_id") is not None and fields["pad_token_id"] < 0:
        fields["pad_token_id"] = None  # the first LLaMA conversions wrote -1 for "none"
    missing = [k for k in SIZES if k not in fields]
    if missing:
        raise ValueError(f"The config of `{name}` does not say {listed(missing)}. Give a complete config.json.")
    odd = [k for k in SIZES if not isinstance(fields[k], int) or fields[k] < 1]
    if odd:
        raise ValueError(f"The config of `{name}` says `{odd[0]}: {fields[odd[0]]!r}`, wanted a whole number from 1.")
    return config_class(**fields)


def split(tensors: Mapping[str, torch.Tensor]) -> Parts:
    """Sorts tensors by part. Names of no known part stay with `language`, whose loading reports them."""
    parts = Parts({}, {}, {}, {})
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")  # of files written while peft wrapped the model
        if name.endswith(".rotary_emb.inv_freq"):
            parts.left_out[key] = "rotary frequencies, computed from the config"
        elif name.endswith("vision_model.embeddings.position_ids"):
            parts.left_out[key] = "position numbers 0, 1, 2, ... of the tower"
        elif name.startswith(("model.mm_projector.", "mm_projector.")):
            parts.projector[name.removeprefix("model.")] = tensor
        elif name.startswith("model.vision_tower."):
            inner = (
                name.removeprefix("model.vision_tower.").removeprefix("vision_tower.").removeprefix("vision_model.")
            )
            parts.vision[inner] = tensor
        else:
            parts.language[name] = tensor
    return parts


def stock_projector(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[str, Tensors]:
    """`projector_type`, and the trained layers under stock names: a `linear` one comes without its `linear_2`."""
    bare = {}
    for key, tensor in tensors.items():
        inner = key.removeprefix("base_model.model.").removeprefix("model.").removeprefix("mm_projector.")
        bare[inner] = tensor
    layers = {key.rpartition(".")[0] for key in bare}
    if layers == {""}:
        kind = "linear"
    elif layers == {"0", "2"}:
        kind = "mlp"
    else:
        raise ValueError(
            f"The projector of `{name}` consists of {listed(tensors) or 'nothing'}, wanted `mm_projector.weight` and "
            "`.bias` (linear), or those of `mm_projector.0` and `mm_projector.2` (mlp2x_gelu). No other projector "
            "can be stored in the format of the stock LLaVA class, which has exactly two layers."
        )
    wanted = {f"{layer}{end}" for layer in PROJECTOR_LAYERS[kind] for end in ("weight", "bias")}
    check_names(bare, wanted, name, "projector")
    return kind, {
        new + end: bare[old + end] for old, new in PROJECTOR_LAYERS[kind].items() for end in ("weight", "bias")
    }


def original_projector(projector: Mapping[str, torch.Tensor], activation: str, name: str) -> Tensors:
    """The projector of a checkpoint of ours (or a stock one) under the names of the original."""
    wanted = {f"linear_{i}.{end}" for i in (1, 2) for end in ("weight", "bias")}
    check_names(projector, wanted, name, "projector")
    if activation == "gelu":
        kind = "mlp"
    elif activation == "linear":
        kind = "linear"
        second = projector["linear_2.weight"]
        if not torch.equal(second, torch.eye(*second.shape, dtype=second.dtype)) or projector["linear_2.bias"].any():
            raise ValueError(
                f"The projector of `{name}` has no activation, but its second layer is not the identity. The original "
                "has no such projector: one layer (`linear`), or two with a GELU between them (`mlp2x_gelu`)."
            )
    else:
        raise ValueError(
            f"The projector of `{name}` has the activation `{activation}`, wanted `gelu` or `linear`: the original "
            "has no other."
        )
    return {
        ORIGINAL_PREFIX + old + end: projector[new + end].contiguous()
        for old, new in PROJECTOR_LAYERS[kind].items()
        for end in ("weight", "bias")
    }


def check_projector_fits(
    projector: Mapping[str, torch.Tensor], vision_width: int, text_width: int, name: str, vision: str, language: str
):
    """`projector` has stock names. Raises with what it maps, and what would fit."""
    out_width, in_width = projector["linear_1.weight"].shape
    found = [
        f"`{part}` has width {width}"
        for part, width, wanted in ((vision, vision_width, in_width), (language, text_width, out_width))
        if width != wanted
    ]
    if not found:
        shapes = {"linear_1.weight": (text_width, vision_width), "linear_1.bias": (text_width,)}
        shapes |= {"linear_2.weight": (text_width, text_width), "linear_2.bias": (text_width,)}
        check_shapes(projector, shapes, name, "projector")
        return
    known = (KNOWN_TOWERS.get(in_width), KNOWN_LANGUAGE_MODELS.get(out_width))
    fits = f" (fits {' and '.join(words for words in known if words)})" if any(known) else ""
    raise ValueError(
        f"The projector of `{name}` maps {in_width}-wide features to a {out_width}-wide language model{fits}, but "
        f"{' and '.join(found)}. Give the tower and the language model that it was trained with."
    )


@torch.no_grad()
def load_projector(model, tensors: Mapping[str, torch.Tensor], name: str):
    """Copies an original projector into a `LlavaForConditionalGeneration`, in the model's dtype."""
    kind, projector = stock_projector(tensors, name)
    config = model.config
    if kind != config.projector_type:
        raise ValueError(
            f"The projector of `{name}` is of type `{kind}`, but the model's is `{config.projector_type}`. Build the "
            f"model with `--projector {kind}`."
        )
    layers = config.vision_feature_layer
    num_layers = 1 if isinstance(layers, int) else len(layers)
    check_projector_fits(
        projector,
        config.vision_config.hidden_size * num_layers,
        config.text_config.hidden_size,
        name,
        config.vision_config._name_or_path or config.vision_config.model_type,
        config.text_config._name_or_path or config.text_config.model_type,
    )
    target = model.model.multi_modal_projector
    if kind == "linear":
        width = config.text_config.hidden_size
        projector |= {"linear_2.weight": torch.eye(width), "linear_2.bias": torch.zeros(width)}
    for key, tensor in projector.items():
        target.get_parameter(key).copy_(tensor)


def add_delta(delta: Tensors, base: Mapping[str, torch.Tensor], name: str, base_name: str) -> Tensors:
    """base + delta. Rows of the vocabulary that only the delta has are its own, not a difference; consumes `delta`."""
    check_names(delta, base, name, "language model", f", compared with its base `{base_name}`")
    grown = {"model.embed_tokens.weight", "lm_head.weight"}
    shapes = {key: tuple(tensor.shape) for key, tensor in base.items() if key not in grown}
    check_shapes(delta, shapes, name, "language model", f"its base `{base_name}`")
    for key in grown & set(base):
        if delta[key].shape[0] < base[key].shape[0] or delta[key].shape[1] != base[key].shape[1]:
            raise ValueError(
                f"`{key}` is {tuple(delta[key].shape)} in `{name}` but {tuple(base[key].shape)} in its base "
                f"`{base_name}`; it may only have more rows. Give the base that the delta was made from."
            )
    result = {}
    for key in list(delta):
        tensor = delta.pop(key).clone()
        tensor[: base[key].shape[0]] += base[key].to(tensor.dtype)
        result[key] = tensor
    return result


def looks_like_delta(language: Mapping[str, torch.Tensor]) -> bool:
    """Whether weights are a difference: their final norm is about 0, where that of a model is of the order of 1."""
    norm = language.get("model.norm.weight")
    return norm is not None and norm.float().abs().mean().item() < 0.1


def check_names(given: Iterable[str], wanted: Iterable[str], name: str, part: str, against: str = ""):
    given, wanted = set(given), set(wanted)
    missing, unexpected = sorted(wanted - given), sorted(given - wanted)
    if missing or unexpected:
        found = [f"lacks {count(missing)} ({listed(missing)})"] if missing else []
        found += [f"has {count(unexpected)} without a place ({listed(unexpected)})"] if unexpected else []
        raise ValueError(
            f"The {part} of `{name}` {' and '.join(found)}{against}. Give a complete, matching checkpoint."
        )


def check_shapes(
    given: Mapping[str, torch.Tensor],
    wanted: Mapping[str, Iterable[int]],
    name: str,
    part: str,
    against: str = "config.json",
):
    wrong = [key for key, shape in wanted.items() if key in given and tuple(given[key].shape) != tuple(shape)]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"The {part} of `{name}` has {count(wrong)} of another shape than {against} says, such as `{key}`: "
            f"{tuple(given[key].shape)}, wanted {tuple(wanted[key])}. Give matching files."
        )


def count(keys: Iterable[str]) -> str:
    number = len(list(keys))
    return f"{number} tensor{'' if number == 1 else 's'}"


def listed(keys: Iterable[str]) -> str:
    """The first few names, and how many more."""
    keys = list(keys)
    names = ", ".join(f"`{key}`" for key in keys[:4])
    return f"{names} and {len(keys) - 4} more" if len(keys) > 4 else names


__all__ = ["load_projector"]
