"""Time and memory of `llava captions` on as many captions as CC3M has.

    python -m benchmarks.captions --captions 3318333 --num-proc 2

The captions are made up of a few sentence forms and words drawn by Zipf's law, so that there are about as many
different noun phrases as CC3M's users count (0.9 M). Real ones are not needed: the cost depends on words, phrases and
rows alone.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recipes import captions


LETTERS = ("bdfgklmnprst", "aeiou")
FORMS = (
    "{a} {n} is standing next to the {a} {n}",
    "{n} and {n} in the {n} with a {a} {n} at sunset",
    "vector illustration of a {a} {n} with {n}",
    "a {n} holding two {n} on the {a} {n} in front of some {n}",
    "the {a} {n} walks through the {n} during the {n} {n} .",
)
COMMON = ["man", "woman", "dog", "house", "street", "tree", "beach", "car", "person", "background", "city", "night"]


def words(rng: random.Random, number: int, common: list[str]) -> tuple[list[str], list[float]]:
    """Words and their cumulated weights, the r-th most frequent of weight 1/r."""
    made = dict.fromkeys(common)
    while len(made) < number:
        made["".join(rng.choice(LETTERS[k % 2]) for k in range(rng.randint(4, 8)))] = None
    return list(made), list(accumulate(1 / rank for rank in range(1, number + 1)))


def make_captions(number: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    nouns, noun_weights = words(rng, 5_000, COMMON)
    adjectives, adjective_weights = words(rng, 400, ["red", "old", "big", "young", "wooden", "beautiful"])
    for start in range(0, number, 10_000):
        size = min(10_000, number - start)
        drawn_nouns = iter(rng.choices(nouns, cum_weights=noun_weights, k=6 * size))
        drawn_adjectives = iter(rng.choices(adjectives, cum_weights=adjective_weights, k=3 * size))
        for form in rng.choices(FORMS, k=size):
            caption = form
            for mark, source in (("{n}", drawn_nouns), ("{a}", drawn_adjectives)):
                while mark in caption:
                    caption = caption.replace(mark, next(source), 1)
            yield caption


def write_pairs(path: Path, number: int, seed: int) -> None:
    rows = make_captions(number, seed)
    schema = pa.schema({"caption": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, number, 100_000):
            batch = [next(rows) for _ in range(min(100_000, number - start))]
            writer.write_table(pa.table({"caption": batch}, schema=schema))


def cpu_seconds() -> float:
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.captions", description=__doc__.partition("\n")[0])
    parser.add_argument("--captions", type=int, default=3_318_333)
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--concepts", default="textblob")
    parser.add_argument("--out", type=Path, help=".json of the figures, and beside it the plot of the phrases")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data, rows = Path(folder, "pairs.parquet"), Path(folder, "rows.parquet")
        write_pairs(data, args.captions, seed=0)
        command = [str(data), "--image-pattern", "GCC_train_{:09d}.jpg", "--out", str(rows)]
        start, cpu_start = time.perf_counter(), cpu_seconds()
        captions.main([*command, "--concepts", args.concepts, "--num-proc", str(args.num_proc)])
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
        report = json.loads(rows.with_suffix(".report.json").read_text(encoding="utf-8"))
        plot = rows.with_suffix(".phrases.png").read_bytes()
    figures = {
        "captions": args.captions,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),  # of all processes: what others do on the machine does not change it much
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mib_of_largest_worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "num_proc": args.num_proc,
        **{key: report[key] for key in ("extractor", "phrases", "phrases_frequent_enough", "phrases_kept", "rows")},
    }
    from benchmarks.forward import circumstances  # noqa: PLC0415  # brings torch, whose memory is none of captions'

    facts = circumstances(argparse.Namespace(device="cpu", **vars(args)))
    facts["versions"] |= {name: version(name) for name in ("pyarrow", "textblob")}
    figures = facts | figures
    print(json.dumps(figures, indent=2))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        args.out.with_suffix(".png").write_bytes(plot)


if __name__ == "__main__":
    main()
