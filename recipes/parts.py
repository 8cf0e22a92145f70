"""Loads the halves of a LLaVA, each from a directory or a Hub id: a vision tower, a language model, its tokenizer."""

import json
from pathlib import Path

import torch
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
    config = AutoConfig.from_pretrained(name)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # of a whole CLIP, the list of text weights left behind says nothing
    try:
        tower, info = AutoModel.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise ValueError(
            f"`{name}` lacks {len(info['missing_keys'])} weights of its vision tower, such as "
            f"`{min(info['missing_keys'])}`. Give a complete checkpoint."
        )
    return tower, AutoImageProcessor.from_pretrained(name)


def load_language_model(
    name: str, dtype: str | torch.dtype = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = AutoConfig.from_pretrained(name)
    if config.get_text_config() is not config:
        raise ValueError(
            f"`{name}` is a `{config.model_type}`, which holds more than a language model. Give a text-only one; some "
            "families offer it as a checkpoint of its own."
        )
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype), load_tokenizer(name)


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
    if settings.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast"):
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
