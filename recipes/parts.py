"""Loads the halves of a LLaVA, each from a directory or a Hub id: a vision tower, a language model, its tokenizer."""

import json
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
    return tower, AutoImageProcessor.from_pretrained(name)


def load_config(name: str) -> PreTrainedConfig:
    if name[:1] in "./~" and not Path(name).is_dir():
        raise FileNotFoundError(f"`{name}` is no directory. Check the path, or give a Hub id such as `owner/name`.")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`{name}` is no model that can be loaded. Check the path or Hub id. {error}") from error


def load_whole(auto_class: type, name: str, **options) -> PreTrainedModel:
    """A model none of whose weights were made up because the checkpoint lacks them."""
    try:
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"A weight file of `{name}` is damaged ({error}). Download it again.") from error
    missing = sorted(map(str, info["missing_keys"])) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise ValueError(
            f"`{name}` lacks {len(missing)} of its weights, such as `{missing[0]}`. Give a complete checkpoint."
        )
    return model


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


def find_file(name: str, file: str) -> Path | None:
    """The path of one file of a directory or Hub id, None where it has no such file."""
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise OSError(f"`{name}` does not exist here, and was not found on the Hub: {error}") from error
    return None if found is None else Path(found)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}") from error
