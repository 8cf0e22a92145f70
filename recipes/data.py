"""Looks at training data before a run does, and converts the original's JSON to rows and back.

    llava data check data/instruct.parquet --model checkpoints/start
    llava data import llava_v1_5_mix665k.json --image-root playground/data --out data/mix665k.parquet
    llava data export data/instruct.parquet --images images --out instruct.json

`check` encodes every conversation and opens every picture. What cannot be used is counted by reason with examples.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from data_generation.llava_json import ImageRoots, read_llava, write_llava
from data_generation.rejections import Counts, unless_spoilt
from data_generation.rows import check_out, read_rows, row_features, write_rows
from processing import LlavaProcessor
from processing.rows import encode_rows
from recipes.building.parts import load_processor
from recipes.run_folder import alone_writing
from recipes.training.train_data import load_rows


def check(data: str, processor: LlavaProcessor, max_length: int, image_root: str | None = None) -> tuple[str, int]:
    """A report, and how many rows a training could not use."""
    rows = load_rows(data, image_root, look_for_files=False)
    encoded, report = encode_rows(rows, processor, max_length, skip_invalid=True, parts=[(data, len(rows))])
    lengths = [n for n in encoded["num_tokens"] if n]
    shown = f"{len(lengths):,} usable rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all"
    return f"{report}\n{shown}; {sum(encoded['num_images']):,} pictures in them", report.counts.total()


def image_roots(arguments: list[str] | None) -> ImageRoots:
    """`DIR` for all pictures, `PREFIX=DIR` for those whose names begin with the folder PREFIX."""
    folder, of_prefix = None, {}
    for argument in arguments or []:
        prefix, equals, place = argument.partition("=")
        path = Path(place if equals else argument)
        if not path.is_dir():
            raise ValueError(f"The image root `{path}` is no folder. Check the path.")
        if equals:
            of_prefix[prefix.strip("/")] = path
        elif folder is not None:
            raise ValueError(f"Two image roots for all pictures, `{folder}` and `{path}`. Write PREFIX=DIR for one.")
        else:
            folder = path
    return ImageRoots(folder, of_prefix)


def import_json(args: argparse.Namespace) -> Counts:
    check_out(args.out, args.data)
    counts = Counts()
    rows = read_llava(counts, args.data, image_roots(args.image_root), args.kind, args.source)
    rows = tqdm(unless_spoilt(rows, counts, args.strict), desc="reading", unit=" rows", disable=None)
    write_rows(rows, args.out, row_features(embedded=False))
    return counts


def export_json(args: argparse.Namespace) -> Counts:
    check_out(args.out, args.data)
    counts = Counts()
    rows = tqdm(read_rows(args.data), desc="writing", unit=" rows", disable=None)
    write_llava(counts, rows, args.out, args.images, args.strict)
    return counts


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava data", description="Look at training data, and convert it.")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="encode every conversation and open every picture")
    check.add_argument("data", help=".jsonl or .parquet file, saved data set, or Hub id")
    check.add_argument("--model", required=True, help="checkpoint whose tokenizer and chat template are to be used")
    check.add_argument("--max-length", type=int, default=8192, help="tokens of a row (%(default)s)")
    check.add_argument("--image-root", help="folder that image paths in the data start from")

    reading = actions.add_parser("import", help="the original's JSON to rows")
    reading.add_argument("data", type=Path, help=".json of LLaVA-Instruct, LLaVA-Pretrain or mix665k")
    reading.add_argument("--out", type=Path, required=True, help=".parquet to write")
    reading.add_argument(
        "--image-root",
        action="append",
        metavar="[PREFIX=]DIR",
        help="where the pictures are; with PREFIX= for names that begin with it, such as coco=/data/coco. "
        "Without any, no picture is looked for",
    )
    reading.add_argument("--kind", default="conversation", help="of rows with pictures (%(default)s)")
    reading.add_argument("--source", help="name of the data set in the rows (the file's)")
    reading.add_argument("--strict", action="store_true", help="a row that cannot be read is an error")

    writing = actions.add_parser("export", help="rows to the original's JSON")
    writing.add_argument("data", type=Path, help=".parquet or .jsonl file, or a folder of such files")
    writing.add_argument("--out", type=Path, required=True, help=".json to write")
    writing.add_argument("--images", type=Path, metavar="DIR", help="where embedded pictures are written to")
    writing.add_argument("--strict", action="store_true", help="a row that cannot be written is an error")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.action != "check":
        with alone_writing(args.out):
            counts = import_json(args) if args.action == "import" else export_json(args)
        print(f"{args.out}: {counts}")
        return
    report, num_bad = check(args.data, load_processor(args.model), args.max_length, args.image_root)
    print(report)
    if num_bad:
        raise ValueError(
            f"{num_bad} rows of `{args.data}` cannot be used. Repair or remove them, or train with `skip_invalid`."
        )


if __name__ == "__main__":
    main()
