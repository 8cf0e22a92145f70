"""Loads the data sets of a training run and mixes them; encoding and planning are in `processing/packing.py`."""

from pathlib import Path

from datasets import Dataset, Image, List, load_dataset, load_from_disk

from processing.mixing import mix


def load_rows(data: str, image_root: str | None = None) -> Dataset:
    """Rows with `messages`, `images` and `id`, pictures unopened."""
    path = Path(data)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise ValueError(f"`data` names `{data}`, which is no file. Check the path.")
        kind = "parquet" if path.suffix == ".parquet" else "json"
        rows = load_dataset(kind, data_files=str(path), split="train")
    elif path.is_dir():
        rows = load_from_disk(path)
    else:
        rows = load_dataset(data, split="train")

    if "messages" not in rows.column_names or not len(rows):
        raise ValueError(
            f"`{data}` has {len(rows)} rows with the columns {', '.join(rows.column_names) or 'none'}; wanted rows "
            "with `messages`, and `images` where there are pictures."
        )
    if image_root is not None and "images" in rows.column_names:
        rows = rows.map(lambda row: {"images": [str(Path(image_root, image)) for image in row["images"]]})
    if "images" in rows.column_names:
        rows = rows.cast_column("images", List(Image(decode=False)))  # opened by the collator, with care
    return rows


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
