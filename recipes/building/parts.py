"""Loads a LLaVA, or the halves of one, from a directory or a Hub id, and refuses what is not whole."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.building.hub import check_reachable


JSON_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
)


def load_vision_tower(name: str, dtype: str | torch.dtype = "auto") -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The tower alone, also out of a checkpoint that holds a text half beside it, and its image processor."""
    config = load_config(name)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    missing = [field for field in ("image_size", "patch_size", "hidden_size") if not hasattr(config, field)]
    if missing:
        raise ValueError(
            f"`{name}` is a `{config.model_type}` without `{'`, `'.join(missing)}`, wanted a vision transformer, such "
            "as CLIP, SigLIP or DINOv2."
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # of a whole CLIP, the list of text weights left behind says nothing
    try:
        tower = load_whole(AutoModel, name, config=config, dtype=dtype)
    finally:
        logging.set_verbosity(verbosity)
    try:
        return tower, AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The image processor of `{name}` cannot be loaded: {reason_of(error)}. Put its preprocessor_config.json "
            "there."
        ) from error


def check_is_no_lost_path(name: str) -> None:
    """What cannot be a Hub id is not looked for there, and no other name where there is no network."""
    if name[:1] in ("", ".", "/", "~") and not Path(name).is_dir():
        raise FileNotFoundError(f"`{name}` is no directory. Check the path, or give a Hub id such as `owner/name`.")
    if not Path(name).exists():
        check_reachable(name)


def check_json_files(folder: str | Path) -> None:
    """transformers reads them one after another, and not every error of its names the file."""
    for name in JSON_OBJECTS:
        if (file := Path(folder, name)).is_file():
            read_json(file)


def load_config(name: str) -> PreTrainedConfig:
    check_is_no_lost_path(name)
    check_json_files(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`{name}` is no model that can be loaded. Check the path or Hub id. {error}") from error


def load_whole(auto_class: type, name: str, **options) -> PreTrainedModel:
    """A model none of whose weights were made up because the checkpoint lacks them."""
    try:
        # Shapes that differ are looked at below: transformers' own error does not say which.
        model, info = auto_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except SafetensorError as error:
        raise ValueError(
            f"A weight file of `{name}` cannot be read: {error}. It was cut off or damaged: copy, download or train "
            "it again."
        ) from error
    except OSError as error:
        raise ValueError(
            f"`{name}` cannot be loaded: {reason_of(error)}. Copy, download or write it again."
        ) from error
    if info["mismatched_keys"]:
        key, found, wanted = min(info["mismatched_keys"])
        raise ValueError(
            f"`{name}` has the weight `{key}` in the shape {tuple(found)}, and its config.json wants {tuple(wanted)}. "
            "Give the config.json that belongs to the weights."
        )
    if missing := sorted(map(str, info["missing_keys"])):
        raise ValueError(
            f"`{name}` lacks {len(missing)} of its weights, such as `{missing[0]}`. Give a complete checkpoint."
        )
    check_finite(model.named_parameters(), name)
    return model


@torch.no_grad()
def check_finite(weights: Iterable[tuple[str, torch.Tensor]], name: str) -> None:
    """Such a model would answer, with nonsense. Extremes, because `isfinite` takes ten times as long on a CPU."""
    for key, weight in weights:
        if weight.is_meta or not weight.is_floating_point() or not weight.numel():
            continue
        found = [number for number in torch.stack(weight.aminmax()).tolist() if not math.isfinite(number)]
        if found:
            raise ValueError(
                f"`{name}` has {found[0]} in its weight `{key}`, wanted numbers. Its training diverged, the file was "
                "damaged, or its numbers are too large for the dtype: give an earlier checkpoint, or another --dtype."
            )


def load_llava(name: str, **options) -> LlavaForConditionalGeneration:
    """From safetensors alone, which cannot run code; the halves of `build` may come as older files."""
    check_is_llava(name, options.get("revision"))
    check_json_files(name)
    return load_whole(LlavaForConditionalGeneration, name, use_safetensors=True, **options)


def reason_of(error: Exception) -> str:
    """What another library says, as a part of our sentence."""
    return " ".join(str(error).split())[:300].rstrip(".")


def check_is_llava(name: str, revision: str | None = None) -> None:
    """Before weights are read, which may take long."""
    file = Path(name, "config.json")
    if not Path(name).exists():
        check_is_no_lost_path(name)
        found = find_file(name, "config.json", revision)
        if found is None:
            raise ValueError(f"`{name}` is no folder here, and was not found on the Hub. Check the path or the name.")
        file = found
    if not file.is_file():
        raise ValueError(f"`{name}` has no config.json. Give the folder of a checkpoint, or its name on the Hub.")
    kind = read_json(file).get("model_type")
    if kind != "llava":
        raise ValueError(
            f"`{name}` is a model of type `{kind}`, wanted `llava`. Make one with `llava build` or `llava convert`."
        )


def load_processor(name: str) -> LlavaProcessor:
    """One that a conversation has gone through."""
    if not Path(name).exists():
        check_is_no_lost_path(name)
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    try:
        processor = LlavaProcessor.from_pretrained(name)
        processor.encode_text([asked])
    except Exception as error:  # tokenizers raises nothing more special, and a template what it likes
        raise ValueError(
            f"The processor of `{name}` cannot be used: {reason_of(error)}. Wanted are processor_config.json, "
            "tokenizer.json, tokenizer_config.json and chat_template.jinja as `llava build` writes them. Copy or "
            "download them again."
        ) from error
    return processor


def load_language_model(
    name: str, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = load_config(name)
    if "vision_config" in config.sub_configs or config.get_text_config() is not config:
        raise ValueError(
            f"`{name}` is a `{config.model_type}`, which holds more than a language model. Give a text-only one; some "
            "families offer it as a checkpoint of its own."
        )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"`{name}` is a `{config.model_type}`, wanted a causal language model such as Llama or Qwen.")
    return load_whole(AutoModelForCausalLM, name, dtype=dtype), load_tokenizer(name)


def load_tokenizer(name: str, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """
    The tokenizer as it was when the model was trained.

    For Llama tokenizers `legacy` decides whether a text after a control token begins with a space. transformers 5
    takes False where tokenizer_config.json is silent, and does not save it; when the original was trained, silence
    meant True.
    """
    if not any(find_file(name, vocabulary) for vocabulary in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        # transformers would make an empty tokenizer out of the rest.
        raise FileNotFoundError(f"`{name}` has no vocabulary. Put its tokenizer.model or tokenizer.json there.")
    file = find_file(name, "tokenizer_config.json")
    settings = read_json(file) if file else {}
    options = {}
    alone = "tokenizer_class" not in settings and find_file(name, "tokenizer.json") is None
    if alone or settings.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast"):
        options["legacy"] = settings.get("legacy") is not False
    try:
        # A config.json of the original would be read as a stock LLaVA's, so the config is given where it is known.
        extra = {} if config is None else {"config": config}
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **extra, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The tokenizer of `{name}` cannot be loaded ({error}). Put its files there: tokenizer.model or "
            "tokenizer.json, tokenizer_config.json, and added_tokens.json where there is one."
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of `{name}` is a `{type(tokenizer).__name__}` written in Python, which does not say where "
            "its tokens stand in the text. Give a model with a tokenizer.json."
        )
    tokenizer.init_kwargs |= options
    return tokenizer


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """The path of one file of a directory or Hub id, None where it has no such file."""
    if not Path(name).exists():
        check_reachable(name)
    try:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise OSError(f"`{name}` does not exist here, and was not found on the Hub: {error}") from error
    return None if found is None else Path(found)


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is no JSON in UTF-8: {error}. Copy, download or write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` holds a {type(content).__name__}, wanted an object. Copy or write it again.")
    return content
