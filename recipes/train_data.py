"""Loads the data sets of a training run and mixes them; encoding and planning are in `processing/packing.py`."""

from pathlib import Path

from datasets import Dataset, Image, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from processing.mixing import mix


def load_rows(data: str, image_root: str | None = None) -> Dataset:
    """Rows with `messages`, `images` and `id`, pictures unopened."""
    path = Path(data)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise ValueError(f"`data` names `{data}`, which is no file. Check the path.")
        if not path.stat().st_size:
            raise ValueError(f"`{data}` is empty. Check how it was written.")
        kind = "parquet" if path.suffix == ".parquet" else "json"
        try:
            rows = load_dataset(kind, data_files=str(path), split="train")
        except DatasetGenerationError as error:
            raise ValueError(f"`{data}` cannot be read as {kind}: {error.__cause__}. Repair the file.") from error
    elif path.is_dir():
        rows = load_from_disk(path)
    else:
        rows = load_dataset(data, split="train")

    if "messages" not in rows.column_names or not len(rows):
        raise ValueError(
            f"`{data}` has {len(rows)} rows with the columns {', '.join(rows.column_names) or 'none'}; wanted rows "
            "with `messages`, and `images` where there are pictures."
        )
    if "images" in rows.column_names and isinstance(rows.features["images"], List):
        if rows.features["images"].feature == Value("string"):
            root = image_root or ""
            rows = rows.map(lambda row: {"images": [str(Path(root, image)) for image in row["images"] or []]})
            check_files(rows, data, image_root)
        rows = rows.cast_column("images", List(Image(decode=False)))  # opened by the collator, with care
    return rows


def check_files(rows: Dataset, data: str, image_root: str | None) -> None:
    """Every picture is there, before the first step; whether it can be opened shows when its row comes up."""
    names = [name for images in rows["images"] for name in images]
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing):,} of the {len(names):,} pictures of `{data}` do not exist, such as `{missing[0]}`. Check "
            f"`image_root` (now {image_root!r})."
        )


def load_mixture(
    data: list[str], weights: list[float] | None, image_root: str | None, seed: int
) -> tuple[Dataset, list[dict]]:
    """All data sets as one, and what each is: its rows and fingerprint."""
    loaded = [load_rows(name, image_root) for name in data]
    facts = [
        {"data": name, "rows": len(rows), "fingerprint": rows._fingerprint, "weight": weight}
        for name, rows, weight in zip(data, loaded, weights or [1.0] * len(data), strict=True)
    ]
    return mix(loaded, weights, seed), facts
