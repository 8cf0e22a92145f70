"""The place of a new checkpoint, and writing one there whole or not at all."""

import os
import shutil
from pathlib import Path

from data_generation.replacing import partial_of, remove_remains
from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.run_folder import told_when_full


def check_place(out: str | Path) -> Path:
    """The place for a new checkpoint; asked before the work and again before writing."""
    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"`{out}` is a directory with something in it. Choose another place, or empty it.")
    above = next((path for path in (out, *out.parents) if path.exists()), Path())
    if not above.is_dir():
        raise ValueError(f"`{above}` is a file, so `{out}` cannot be a directory. Choose another place.")
    return out


def write_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: str | Path):
    """One complete directory, or none: it is written beside its place under another name and then renamed."""
    out = check_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(out.parent.absolute())
    partial = partial_of(out)
    try:
        with told_when_full(partial, "Nothing is left of it. Make space, or give another --out."):
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
