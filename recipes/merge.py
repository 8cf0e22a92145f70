"""Folds a LoRA adapter into its base: one full checkpoint, which loads where peft is not.

llava merge --adapter checkpoints/stage2-lora --out checkpoints/stage2
"""

import argparse
import json
from pathlib import Path

from peft import PeftModel

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.build import write_checkpoint


def merge(adapter: Path, base: str | None = None, dtype: str = "auto") -> LlavaForConditionalGeneration:
    """The base with the adapter and the fully trained modules beside it folded in."""
    trained_on = base_of(adapter)
    model = LlavaForConditionalGeneration.from_pretrained(base or trained_on, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def base_of(adapter: Path) -> str:
    """The checkpoint that it was trained on."""
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise ValueError(f"`{adapter}` has no adapter_config.json. Give the directory that a LoRA training wrote.")
    return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava merge", description="Fold a LoRA adapter into a full checkpoint.")
    parser.add_argument("--adapter", required=True, type=Path, help="directory that a LoRA training wrote")
    parser.add_argument("--out", required=True, type=Path, help="directory of the full checkpoint")
    parser.add_argument("--base", help="checkpoint the adapter was trained on, if it has moved since")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    model = merge(args.adapter, args.base, args.dtype)
    write_checkpoint(model, LlavaProcessor.from_pretrained(args.adapter), args.out)
    print(f"{args.out}: {args.adapter} folded into its base")


if __name__ == "__main__":
    main()
