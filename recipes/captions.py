"""Image-caption pairs to the data of the first stage, balanced over what the captions speak of.

    llava captions cc3m.parquet --image-root images --image-pattern GCC_train_{:09d}.jpg --out data/cc.parquet

Every noun phrase of the captions is counted, and of frequent ones only some captions are kept, as in the paper. Beside
the rows it writes a report (.report.json) and a plot of the phrases before and after (.phrases.png).
"""

import argparse
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_generation.captions import Pairs
from data_generation.concepts import PhraseIndex, balance, extract_phrases
from data_generation.frequency_plot import draw_frequencies
from data_generation.phrases import describe_extractor
from data_generation.prompting import load_questions
from data_generation.rejections import Counts
from data_generation.replacing import write_atomically
from data_generation.rows import check_out, row_features, write_rows
from recipes.run_folder import alone_writing


def build(args: argparse.Namespace) -> dict:
    """Writes rows, report and plot; returns the report."""
    check_out(args.out, args.data)
    pairs = Pairs(args.data, args.caption, args.image, args.id, args.image_pattern, args.image_root)
    questions = load_questions("brief", args.prompts)
    counts, numbers = Counts(), array("q")

    def captions() -> Iterator[str]:
        for number, caption in tqdm(pairs.captions(counts), desc="reading captions", unit="", disable=None):
            numbers.append(number)
            yield caption

    if args.concepts == "none":
        num_captions = sum(1 for _ in captions())
        chosen, facts = np.ones(num_captions, dtype=bool), {}
    else:
        num_proc = args.num_proc or os.cpu_count() or 1
        index = PhraseIndex(extract_phrases(captions(), args.concepts, num_proc))
        chosen = balance(index, args.min_captions, args.max_captions, args.seed)
        before, after = index.frequencies(), index.frequencies(chosen)
        facts = {
            "extractor": describe_extractor(args.concepts),
            "min_captions": args.min_captions,
            "max_captions": args.max_captions,
            "phrases": len(index.phrases),
            "phrases_frequent_enough": int(np.count_nonzero(before >= args.min_captions)),
            "phrases_kept": int(np.count_nonzero(after)),
            "captions_without_phrase": int(np.count_nonzero(np.diff(index.ends) == 0)),
        }
    if not chosen.any() or (args.strict and counts.num_rejected):
        raise ValueError(
            f"{counts}\n{chosen.sum():,} captions chosen, {facts or 'without filter'}. Nothing is written."
        )

    embedded = pairs.embedded()
    kept = iter(np.frombuffer(numbers, dtype=np.int64)[chosen].tolist())
    rows = pairs.rows(kept, questions, args.seed, args.source or args.data.stem, embedded)
    rows = tqdm(rows, desc="writing rows", total=int(chosen.sum()), unit="", disable=None)
    num_rows = write_rows(rows, args.out, row_features(embedded))
    if args.concepts != "none":
        title = f"Noun phrases of {len(chosen):,} captions, {chosen.sum():,} kept"
        draw_frequencies(before, after, args.max_captions, title, args.out.with_suffix(".phrases.png"))
    report = {"data": str(args.data), "usable": len(chosen), "rows": num_rows, "seed": args.seed, **facts}
    report |= {"rejected": counts.rejected, "examples": counts.examples}
    write_atomically(args.out.with_suffix(".report.json"), json.dumps(report, indent=2, ensure_ascii=False))
    print(f"{args.out}: {num_rows:,} of {len(chosen):,} usable pairs. {counts}")
    return report


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava captions", description="Make the data of the first training stage.")
    parser.add_argument("data", type=Path, help="pairs: .parquet, .jsonl, .tsv, a folder of such, or COCO's .json")
    parser.add_argument("--out", type=Path, required=True, help=".parquet to write")
    parser.add_argument("--caption", default="caption", metavar="COLUMN", help="of the captions (%(default)s)")
    parser.add_argument("--image", default="image", metavar="COLUMN", help="of paths or pictures (%(default)s)")
    parser.add_argument("--id", metavar="COLUMN", help="of the ids (without: the number of the row)")
    parser.add_argument("--image-pattern", metavar="NAME", help="files by the row's number: GCC_train_{:09d}.jpg")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="pairs whose picture is not there are left out")
    parser.add_argument(
        "--concepts",
        default="textblob",
        metavar="HOW",
        help="what finds noun phrases: textblob (extra `concepts`), stopwords, spacy:MODEL; none: keep all pairs "
        "(%(default)s)",
    )
    parser.add_argument(
        "--min-captions", type=int, default=3, metavar="N", help="rarer phrases are ignored (%(default)s)"
    )
    parser.add_argument("--max-captions", type=int, default=100, metavar="N", help="of one phrase (%(default)s)")
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="folder with a brief_questions.txt of your own")
    parser.add_argument("--source", help="name of the data set in the rows (the file's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-proc", type=int, metavar="N", help="processes (as many as there are cores)")
    parser.add_argument("--strict", action="store_true", help="a pair that cannot be used is an error")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with alone_writing(args.out):
        build(args)


if __name__ == "__main__":
    main()
