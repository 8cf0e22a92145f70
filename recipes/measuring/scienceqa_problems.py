"""Where ScienceQA's problems are: the flags that name them, and the problems."""

import argparse
from collections import Counter
from pathlib import Path

from data_generation.rejections import Counts
from data_generation.scienceqa import Problem, read_split, read_table


def add_problem_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", type=Path, metavar="JSON", help="problems.json of ScienceQA")
    parser.add_argument("--split-file", type=Path, metavar="JSON", help="pid_splits.json of ScienceQA")
    parser.add_argument("--data", help="instead of both: .parquet file or Hub id with ScienceQA's columns")
    parser.add_argument("--split", required=True, help="test, minitest or val, for example")


def load_problems(args: argparse.Namespace, image_root: Path | None = None) -> list[Problem]:
    """All problems of the split, in its order; one that cannot be read is an error."""
    counts = Counts()
    if args.data is not None and (args.problems or args.split_file):
        raise ValueError("--data goes without --problems and --split-file. Give the one or the others.")
    if args.data is None and not (args.problems and args.split_file):
        raise ValueError("Give --problems and --split-file, ScienceQA's two JSON files, or --data.")
    if args.data is None:
        problems = list(read_split(counts, args.problems, args.split_file, args.split, image_root))
    else:
        problems = list(read_table(counts, load_table(args.data, args.split), args.split))
    if counts.num_rejected:
        raise ValueError(f"The split {args.split} cannot be used as a whole: {counts}")
    if not problems:
        raise ValueError(f"The split {args.split} has no problem. Check the files.")
    twice, times = Counter(problem.id for problem in problems).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"The split {args.split} names problem `{twice}` twice. Take ScienceQA's own pid_splits.json."
        )
    return problems


def load_table(data: str, split: str):
    from datasets import load_dataset

    from recipes.training.train_data import named

    path = Path(data)
    if path.exists() and path.suffix != ".parquet" and not list(path.rglob("*.parquet")):
        raise ValueError(
            f"`{data}` has neither problems.json nor parquet files. Give ScienceQA's folder or its Hub id."
        )
    with named(data):
        if path.suffix == ".parquet":
            return load_dataset("parquet", data_files=data, split="train")
        return load_dataset(data, split=split)
