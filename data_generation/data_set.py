"""A folder that `load_dataset` reads: parquet files in shards, a card that names them, a page to look at.

    DIR/README.md           the card; its `configs` say which files are the data set
    DIR/data/3-9f1c02ab/    the third time it was written
    DIR/report.html
    DIR/ledger/             what was asked and answered, no part of the data set

The card is replaced last and by one rename, so that a reader has the old data set or the new one, whole. The folder
has a name of its own because `load_dataset` (5.2) caches by the names of folder and pattern alone where a card gives
the pattern: of two data sets with equal ones, in whatever places, it would show the first for both.
"""

import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features

from .replacing import write_atomically
from .rows import TEXT, row_features, write_rows


SHARD_BYTES = 500 << 20  # of pictures and text
SHARD_ROWS = 100_000
FIRST_ROWS = 100


def features(embedded: bool) -> Features:
    """The columns of rows that a teacher wrote."""
    return row_features(embedded, model=TEXT, prompt_version=TEXT, request_key=TEXT)


def write_data_set(
    out: Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Features,
    card: Callable[[str], str],
    report: Callable[[], str],
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes the rows, and then what `card`, given the pattern of the files, and `report` say of them; gives their
    folder. Without any row, or at an error, the old data set stays as it is.
    """
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    old = builds(data)
    number = max([int(build.name.partition("-")[0]) for build in old], default=0) + 1
    folder = data / f"{number}-{secrets.token_hex(4)}"
    try:
        if not write_shards(rows, folder, columns, shard_bytes):
            raise ValueError("Not one row is left.")
        write_atomically(out / "report.html", report())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_atomically(out / "README.md", card(f"data/{folder.name}/train-*.parquet"))
    for build in old:
        shutil.rmtree(build)
    return folder


def builds(data: Path) -> list[Path]:
    return [folder for folder in data.iterdir() if folder.is_dir() and re.fullmatch(r"\d+-[0-9a-f]{8}", folder.name)]


def first_rows(out: Path) -> list[dict[str, Any]]:
    """Some rows of the data set in `out`, of the columns that say what it is about; none where there is none."""
    data = out / "data"
    folders = sorted(builds(data), key=lambda build: int(build.name.partition("-")[0])) if data.is_dir() else []
    files = sorted(folders[-1].glob("train-*.parquet")) if folders else []
    if not files:
        return []
    with pq.ParquetFile(files[0]) as file:
        batches = file.iter_batches(batch_size=FIRST_ROWS, columns=["source", "image_id", "images"])
        return next(batches).to_pylist()


def write_shards(rows: Iterable[Mapping[str, Any]], folder: Path, columns: Features, shard_bytes: int) -> list[Path]:
    """Files of about `shard_bytes`, named as `load_dataset` likes them."""
    source = iter(rows)
    files: list[Path] = []
    while (first := next(source, None)) is not None:
        file = folder / f"{len(files):05d}.parquet"
        write_rows(_part(first, source, shard_bytes), file, columns)
        files.append(file)
    named = [folder / f"train-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))]
    for file, name in zip(files, named, strict=True):
        file.rename(name)
    return named


def _part(first: Mapping[str, Any], rest: Iterator[Mapping[str, Any]], size: int) -> Iterator[Mapping[str, Any]]:
    held = 0
    for number, row in enumerate(chain([first], rest), 1):
        yield row
        held += weight(row)
        if held >= size or number >= SHARD_ROWS:
            return


def weight(row: Mapping[str, Any]) -> int:
    pictures = sum(len(image["bytes"] or b"") for image in row["images"] if isinstance(image, Mapping))
    return pictures + sum(len(part["text"] or "") for message in row["messages"] for part in message["content"])
