"""Folds a LoRA adapter into its base: one full checkpoint, which loads where peft is not.

llava merge --adapter checkpoints/stage2-lora --out checkpoints/stage2
"""

import argparse
import warnings
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from modeling_llava import LlavaForConditionalGeneration
from recipes.building.parts import check_finite, load_llava, load_processor, read_json, reason_of
from recipes.building.writing import check_place, write_checkpoint
from recipes.run_folder import alone_writing


def merge(adapter: Path, base: str | None = None, dtype: str = "auto") -> LlavaForConditionalGeneration:
    """The base with the adapter and the fully trained modules beside it folded in."""
    trained_on = base_of(adapter)
    try:
        model = load_llava(base or trained_on, dtype=dtype)
    except (ValueError, OSError) as error:
        raise ValueError(f"The base of `{adapter}`: {error} `llava merge --base` names another.") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # peft would leave out what is not there
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (SafetensorError, RuntimeError, OSError, ValueError, UserWarning) as error:
        raise ValueError(
            f"The adapter of `{adapter}` does not load over `{base or trained_on}`: {reason_of(error)}. Give a folder "
            "that a LoRA training wrote to its end, and the base that it was trained on."
        ) from error
    check_finite(merged.named_parameters(), str(adapter))
    return merged


def base_of(adapter: Path) -> str:
    """The checkpoint that it was trained on."""
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise ValueError(f"`{adapter}` has no adapter_config.json. Give the directory that a LoRA training wrote.")
    base = read_json(config).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(f"`{config}` names no base (`base_model_name_or_path` is {base!r}). Write the adapter again.")
    return base


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava merge", description="Fold a LoRA adapter into a full checkpoint.")
    parser.add_argument("--adapter", required=True, type=Path, help="directory that a LoRA training wrote")
    parser.add_argument("--out", required=True, type=Path, help="directory of the full checkpoint")
    parser.add_argument("--base", help="checkpoint the adapter was trained on, if it has moved since")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with alone_writing(check_place(args.out)):
        model = merge(args.adapter, args.base, args.dtype)
        write_checkpoint(model, load_processor(str(args.adapter)), args.out)
    print(f"{args.out}: {args.adapter} folded into its base")


if __name__ == "__main__":
    main()
