"""ScienceQA: its questions as rows to train on; answers to them, their scores, and joint answers with a text model.

    llava scienceqa convert data/scienceqa --split train --format QCM-LEPA --image-root data/scienceqa/images \\
        --out data/scienceqa_train.parquet
    llava scienceqa answer --data derek-thomas/ScienceQA --split test --model checkpoints/sqa --out answers.jsonl
    llava scienceqa score --data derek-thomas/ScienceQA --split test --predictions answers.jsonl --out scores.json
    llava scienceqa ensemble judge --data derek-thomas/ScienceQA --split test --predictions answers.jsonl \\
        --model gpt-4o-mini --out ensemble

See docs/scienceqa.md.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from data_generation.rejections import Counts, unless_spoilt
from data_generation.rows import check_out, write_rows
from data_generation.scienceqa import check_format, problem_rows, read_problems, read_table, scienceqa_features
from recipes.measuring.scienceqa_answer import add_answer
from recipes.measuring.scienceqa_ensemble import add_ensemble
from recipes.measuring.scienceqa_problems import load_table
from recipes.measuring.scienceqa_score import add_score


def convert_rows(args: argparse.Namespace) -> Counts:
    check_format(args.format)
    check_out(args.out, Path(args.data))
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


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava scienceqa", description="ScienceQA: rows, answers, scores, ensembles."
    )
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
    convert.set_defaults(run=convert_rows)
    add_answer(actions)
    add_score(actions)
    add_ensemble(actions)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
