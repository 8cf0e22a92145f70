"""A copy of a checkpoint for lmms-eval, whose tokenizer leaves the first token to the chat template.

    python -m benchmarks.lmms_task.one_bos checkpoints/stage2 checkpoints/stage2-lmms

lmms-eval writes a chat out as text, which begins with BOS where the template says so, and has the tokenizer add
another. The copy has links to the other files, so it costs no space.
"""

import argparse
import json
from pathlib import Path


CHANGED = ("tokenizer.json", "tokenizer_config.json")


def copy_with_one_bos(checkpoint: Path, out: Path) -> None:
    tokenizer, config = (json.loads((checkpoint / name).read_text(encoding="utf-8")) for name in CHANGED)
    if tokenizer["post_processor"] is None and not config.get("add_bos_token"):
        raise ValueError(f"The tokenizer of `{checkpoint}` adds no tokens. Give lmms-eval the checkpoint itself.")
    tokenizer["post_processor"] = None
    config["add_bos_token"] = False  # or the tokenizers of some models make the post-processor anew
    out.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in CHANGED:
            (out / file.name).symlink_to(file.resolve())
    for name, content in zip(CHANGED, (tokenizer, config), strict=True):
        (out / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    copy_with_one_bos(args.checkpoint, args.out)
