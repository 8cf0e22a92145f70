"""ScienceQA: its questions as rows to train on and to answer.

    llava scienceqa convert data/scienceqa --split train --format QCM-LEPA --image-root data/scienceqa/images \\
        --out data/scienceqa_train.parquet
    llava scienceqa convert derek-thomas/ScienceQA --split test --format CQM-A --letter-only --out data/test.parquet
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from data_generation.rejections import Counts, unless_spoilt
from data_generation.rows import write_rows
from data_generation.scienceqa import check_format, problem_rows, read_problems, read_table, scienceqa_features


def convert(args: argparse.Namespace) -> Counts:
    check_format(args.format)
    counts = Counts()
    folder = Path(args.data)
    embedded = not (folder / "problems.json").is_file()
    if embedded:
        problems = read_table(counts, load_table(args.data, args.split), args.split)
    else:
        problems = read_problems(counts, folder, args.split, args.image_root)
    source = f"ScienceQA {args.split} {args.format}"
    rows = problem_rows(problems, args.format, source, args.letter_only, images_first=args.image_at == "start")
    rows = unless_spoilt(tqdm(rows, unit=" rows", disable=None), counts, args.strict)
    write_rows(rows, args.out, scienceqa_features(embedded))
    print(f"{args.out}: {counts}")
    return counts


def load_table(data: str, split: str):
    from datasets import load_dataset

    path = Path(data)
    if path.suffix == ".parquet":
        return load_dataset("parquet", data_files=data, split="train")
    if path.is_dir() and not list(path.rglob("*.parquet")):
        raise ValueError(
            f"`{data}` has neither problems.json nor parquet files. Give ScienceQA's folder or its Hub id."
        )
    return load_dataset(data, split=split)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava scienceqa", description="Turn ScienceQA into rows.")
    actions = parser.add_subparsers(dest="action", required=True)
    convert = actions.add_parser("convert", help="questions to rows")
    convert.add_argument("data", help="folder with problems.json and pid_splits.json, .parquet file, or Hub id")
    convert.add_argument("--split", required=True, help="train, val (validation on the Hub) or test, for example")
    convert.add_argument("--format", default="QCM-LEA", help="what is asked and answered, by letters (%(default)s)")
    convert.add_argument("--out", type=Path, required=True, help=".parquet to write")
    convert.add_argument("--image-root", type=Path, help="folder of the pictures that go with problems.json")
    convert.add_argument("--letter-only", action="store_true", help="add the sentence that asks for the letter alone")
    convert.add_argument("--image-at", choices=["start", "end"], default="start", help="of the question (%(default)s)")
    convert.add_argument("--strict", action="store_true", help="a problem that cannot be read is an error")
    return parser


def main(argv: list[str] | None = None) -> None:
    convert(parser().parse_args(argv))


if __name__ == "__main__":
    main()
