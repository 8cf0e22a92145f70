"""Looks at training data before a run does.

    llava data check data/instruct.parquet --model checkpoints/start

Every conversation is encoded and every picture opened. What cannot be used is counted by reason with examples.
"""

import argparse
from collections import defaultdict

from tqdm import tqdm

from processing import ImageError, LlavaProcessor, open_image
from processing.rows import encode_rows
from recipes.train_data import load_rows


NUM_EXAMPLES = 5


def check(data: str, processor: LlavaProcessor, max_length: int, image_root: str | None = None) -> tuple[str, int]:
    """A report, and how many rows a training could not use."""
    rows = load_rows(data, image_root)
    encoded, report = encode_rows(rows, processor, max_length, skip_invalid=True)
    broken: dict[str, list[str]] = defaultdict(list)
    num_images = 0
    for number, row in enumerate(tqdm(rows, desc="opening pictures", disable=None)):
        for image in row.get("images") or []:
            num_images += 1
            try:
                open_image(image)
            except ImageError as error:
                broken[encoded[number]["id"]].append(str(error))
    lines = [str(report), f"{num_images:,} pictures, {sum(map(len, broken.values())):,} of them cannot be opened"]
    lines += [f"  `{name}`: {errors[0]}" for name, errors in list(broken.items())[:NUM_EXAMPLES]]
    bad = {name for name, reason in zip(encoded["id"], encoded["rejected"], strict=True) if reason} | set(broken)
    usable = [n for n, name in zip(encoded["num_tokens"], encoded["id"], strict=True) if name not in bad]
    if usable:
        lines.append(f"{len(usable):,} usable rows of {min(usable)} to {max(usable)} tokens, {sum(usable):,} in all")
    return "\n".join(lines), len(bad)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava data", description="Look at training data before a run does.")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="encode every conversation and open every picture")
    check.add_argument("data", help=".jsonl or .parquet file, saved data set, or Hub id")
    check.add_argument("--model", required=True, help="checkpoint whose tokenizer and chat template are to be used")
    check.add_argument("--max-length", type=int, default=8192, help="tokens of a row (%(default)s)")
    check.add_argument("--image-root", help="folder that image paths in the data start from")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    report, num_bad = check(args.data, LlavaProcessor.from_pretrained(args.model), args.max_length, args.image_root)
    print(report)
    if num_bad:
        raise ValueError(
            f"{num_bad} rows of `{args.data}` cannot be used. Repair or remove them, or train with `skip_invalid`."
        )


if __name__ == "__main__":
    main()
