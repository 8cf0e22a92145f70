"""Loads the data sets of a training run, whole or as streams, and mixes them."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from processing.mixing import UNOPENED, count_rows, mix
from recipes.building.hub import check_reachable


NO_PICTURES = List(Value("null"))  # what JSON with nothing but empty lists gives
COLUMNS = ("id", "image_id", "messages", "images")
JSON_SUFFIXES = (".jsonl", ".json")
SUFFIXES = (*JSON_SUFFIXES, ".parquet")
STREAM_SHARDS = 64  # of a saved data set that is read as a stream: what processes and workers are dealt


def load_rows(data: str, image_root: str | None = None, look_for_files: bool = True) -> Dataset:
    """Rows with `messages`, `images` and `id`, pictures unopened; one whose file is missing is an error, unless files
    are not looked for: another process does, or they are opened when conversations are encoded."""
    rows = _load(data, streaming=False)
    if not len(rows):
        raise ValueError(f"`{data}` has no rows. Check how it was written.")
    check_columns(rows.column_names, data)
    if rows.features.get("images") == NO_PICTURES:
        rows = rows.remove_columns("images")
    if has_paths(rows.features):
        root = image_root or ""
        rows = rows.map(
            lambda batch: {"images": [[str(Path(root, one)) for one in images or []] for images in batch["images"]]},
            batched=True,
        )
        if look_for_files:
            check_files(rows, data, image_root)
        rows = rows.cast_column("images", UNOPENED)
    elif "images" in rows.column_names:
        if rows.features["images"] not in (List(Image()), UNOPENED):
            raise ValueError(
                f"The column `images` of `{data}` has the type {rows.features['images']}; wanted a list of paths or "
                "of pictures. Convert it first."
            )
        # The same bytes: `cast_column` would read and write every picture.
        rows = rows.with_format(None)
        rows.info.features = Features(rows.features | {"images": UNOPENED})
    return rows


def load_stream(data: str, image_root: str | None = None) -> IterableDataset:
    """As `load_rows`, read while training runs."""
    rows = _load(data, streaming=True)
    with named(data):
        features = rows.features or next(iter(rows.take(1)), {})
    check_columns(list(features), data)
    kept = [name for name in COLUMNS if name in features and features[name] != NO_PICTURES]
    rows = rows.select_columns(kept)
    if rows.features and has_paths(rows.features):
        root = image_root or ""
        rows = rows.map(
            lambda row: {"images": [{"path": str(Path(root, image)), "bytes": None} for image in row["images"] or []]},
            features=Features(rows.features | {"images": UNOPENED}),
        )
    return rows


def _load(data: str, streaming: bool) -> Dataset | IterableDataset:
    path = Path(data)
    if path.suffix in SUFFIXES:
        files = files_of(path)
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            raise ValueError(f"`data` names `{data}`, which is no file. Check the path.")
        empty = [file for file in files if not file.stat().st_size]
        if empty:
            raise ValueError(f"`{empty[0]}` is empty. Check how it was written.")
        kind = "parquet" if path.suffix == ".parquet" else "json"
        rows = _load_dataset(kind, data, streaming, data_files=[str(file) for file in files])
        if kind == "json" and not streaming:
            with named(data):  # `datasets` takes any bytes, which would stop the first who reads the row as text
                rows.data.table.validate(full=True)
        return rows
    if (path / "state.json").is_file():
        rows = load_from_disk(path)
        return rows.to_iterable_dataset(num_shards=min(STREAM_SHARDS, len(rows) or 1)) if streaming else rows
    if path.exists() and not (path.is_dir() and any(path.rglob("*.parquet"))):
        raise ValueError(
            f"`{data}` is there, but no data set. Wanted a .jsonl or .parquet file, a folder of .parquet files, or "
            "one that `save_to_disk` wrote."
        )
    if not path.exists():
        check_reachable(data, "dataset")
    # Absolute, because a folder may have the name of a format, as "parquet".
    return _load_dataset(str(path.resolve()) if path.exists() else data, data, streaming)


def _load_dataset(kind: str, data: str, streaming: bool, **options) -> Dataset | IterableDataset:
    with named(data):
        return load_dataset(kind, split="train", streaming=streaming, **options)


@contextmanager
def named(data: str) -> Iterator[None]:
    """`datasets` and pyarrow say what is wrong, and not with which data."""
    try:
        yield
    except (DatasetGenerationError, ValueError) as error:  # pyarrow's are ValueErrors, too
        check_utf8([data])
        reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".!")
        raise ValueError(f"`{data}` cannot be read: {reason}. Repair the file, or write it again.") from error


def files_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(path.name)) if "*" in path.name else [path]


def check_utf8(data: list[str]) -> None:
    """Names the first line of JSON files that is none: whoever reads a row as text knows neither file nor line."""
    for path in (file for one in data if Path(one).suffix in JSON_SUFFIXES for file in files_of(Path(one))):
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(f"`{path}`, line {number}: {error}. Save the file as UTF-8.") from error


def check_columns(names: list[str], data: str) -> None:
    if "messages" not in names:
        raise ValueError(
            f"`{data}` has the columns {', '.join(names) or 'none'}; wanted rows with `messages`, and `images` where "
            "there are pictures."
        )


def has_paths(features: Features) -> bool:
    return features.get("images") == List(Value("string"))


def check_files(rows: Dataset, data: str, image_root: str | None) -> None:
    """Every picture is there, before the first step; whether it can be opened shows when its row comes up."""
    names: Counter[str] = Counter()
    for batch in rows.select_columns(["images"]).with_format("arrow").iter(batch_size=10_000):
        names.update(batch["images"].combine_chunks().flatten().to_pylist())
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        count = sum(names[name] for name in missing)
        raise ValueError(
            f"{count:,} of the {names.total():,} pictures of `{data}` do not exist, such as `{missing[0]}`. Check "
            f"`image_root` (now {image_root!r})."
        )


def load_mixture(
    data: list[str], weights: list[float] | None, image_root: str | None, seed: int, look_for_files: bool
) -> tuple[Dataset, list[dict]]:
    """All data sets as one, and what each is: its rows and fingerprint."""
    loaded = [load_rows(name, image_root, look_for_files) for name in data]
    facts = [
        {
            "data": name,
            "rows": len(rows),
            "fingerprint": rows._fingerprint,
            "weight": weight,
            "rows_in_mixture": count_rows(weight, len(rows)),
        }
        for name, rows, weight in zip(data, loaded, weights or [1.0] * len(data), strict=True)
    ]
    return mix(loaded, weights, seed, data), facts


def load_streams(
    data: list[str], weights: list[float] | None, image_root: str | None, seed: int
) -> tuple[IterableDataset, list[dict]]:
    """All streams as one. A weight is the share of conversations that come from each; equal ones without weights."""
    loaded = [load_stream(name, image_root) for name in data]
    weights = weights or [1.0] * len(data)
    facts = [{"data": name, "streamed": True, "weight": weight} for name, weight in zip(data, weights, strict=True)]
    if len(loaded) == 1:
        return loaded[0], facts
    shares = [weight / sum(weights) for weight in weights]
    return interleave_datasets(loaded, probabilities=shares, seed=seed, stopping_strategy="all_exhausted"), facts
