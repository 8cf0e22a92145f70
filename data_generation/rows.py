"""Rows of the data sets that this package makes, and their files.

One schema, TRL's conversational vision format with provenance: `id`, `images`, `messages`, `kind`, `source`,
`image_id` (one per picture; the same picture has the same one, so that training can share it).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from .json_stream import stream_lines
from .replacing import replacing


TEXT = Value("string")
MESSAGES = List({"role": TEXT, "content": List({"type": TEXT, "text": TEXT})})
SUFFIXES = (".parquet", ".jsonl")
BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20  # of embedded pictures

Row = dict[str, Any]


def row_features(embedded: bool, **more: Any) -> Features:
    """The columns of a data set whose pictures are embedded bytes, or else paths."""
    columns = {
        "id": TEXT,
        "images": List(Image() if embedded else TEXT),
        "messages": MESSAGES,
        "kind": TEXT,
        "source": TEXT,
        "image_id": List(TEXT),
    }
    return Features(columns | more)


def image_part() -> dict[str, Any]:
    return {"type": "image", "text": None}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def messages_of(turns: Iterable[tuple[str, str]], num_images: int = 1, images_first: bool = True) -> list[Row]:
    """Messages of questions and answers; the pictures stand in the first question, before or behind its text."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        places = [image_part() for _ in range(num_images if number == 0 else 0)]
        content = [*places, text_part(question)] if images_first else [text_part(question), *places]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [text_part(answer)]})
    return messages


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, features: Features) -> int:
    """Writes a parquet file, whole or not at all, a batch of rows in memory at a time; gives the number of rows."""
    total = 0
    with replacing(path) as file, pq.ParquetWriter(file, features.arrow_schema, compression="zstd") as writer:
        for batch in _batches(rows):
            writer.write_table(pa.Table.from_pylist(batch, schema=features.arrow_schema))
            total += len(batch)
    return total


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a parquet or JSONL file, or of a folder of such files in the order of their names; pictures unopened."""
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or not all(file.is_file() and file.suffix in SUFFIXES for file in files):
        raise ValueError(f"`{path}` is no {' or '.join(SUFFIXES)} file, and no folder with any. Check the path.")
    for file in files:
        if file.suffix == ".parquet":
            yield from _read_parquet(file)
        else:
            yield from (row for _, row in stream_lines(file))


def _read_parquet(path: Path) -> Iterator[Row]:
    with open_parquet(path) as parquet:
        for batch in parquet.iter_batches(batch_size=100):
            yield from batch.to_pylist()


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as parquet:
            yield parquet
    except pa.ArrowException as error:
        raise ValueError(f"`{path}`: {error} Wanted a whole parquet file: copy or write it again.") from error


def check_out(out: Path, *read: Path) -> None:
    """Before any work: that `out` can be a file, and is none of those that are read."""
    if out.is_dir():
        raise ValueError(f"`{out}` is a folder. Name the file to write.")
    place = next((parent for parent in out.parents if parent.exists()), None)
    if place is not None and not place.is_dir():
        raise ValueError(f"`{out}` cannot be written, because `{place}` is a file. Choose another place.")
    if out.exists() and any(path.exists() and path.samefile(out) for path in read):
        raise ValueError(f"`{out}` is read, and would be written over. Give another --out.")


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(image["bytes"] or b"") for image in row["images"] if isinstance(image, Mapping))
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
