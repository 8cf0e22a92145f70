"""Several data sets as one, each seen as often as its weight says."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from .conversation import pictures_in


TEXTS = Features(
    {
        "id": Value("string"),
        "image_id": List(Value("string")),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "source": Value("string"),
    }
)
IMAGES = List(Image(decode=False))


def mix(datasets: list[Dataset], weights: list[float] | None = None, seed: int = 0) -> Dataset:
    """One data set of `id`, `image_id`, `messages`, `images` and `source`; other columns are left out.

    A weight is how often the rows are seen: 2.0 is twice, 0.5 a half of them, chosen by `seed`. A whole number is a
    count of rows: 500 are that many, of every row equally many, up to one. `source` is the data set's own column, or
    its number in the list. Nothing is copied but texts.
    """
    weights = [1.0] * len(datasets) if weights is None else weights
    if len(weights) != len(datasets) or not datasets:
        raise ValueError(f"There are {len(datasets)} data sets and {len(weights)} weights. Give one weight for each.")
    parts = []
    for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
        count = weight if isinstance(weight, int) else round(weight * len(dataset))
        if count < 1 or not len(dataset):
            raise ValueError(
                f"Data set {number} has {len(dataset)} rows and the weight {weight}, which is {count} rows. Raise the "
                "weight, or leave the data set out."
            )
        whole, rest = divmod(count, len(dataset))
        chosen = np.sort(np.random.default_rng([seed, number]).permutation(len(dataset))[:rest])
        aligned = _aligned(dataset, str(number))
        parts.append(aligned.select(np.concatenate([np.arange(len(dataset))] * whole + [chosen])))
    return concatenate_datasets(parts)


def _aligned(dataset: Dataset, source: str) -> Dataset:
    """With the columns and types that all parts of a mixture have."""
    names = dataset.column_names
    if "messages" not in names:
        raise ValueError(f"Data set {source} has no column `messages`, but {', '.join(names)}. Convert it first.")
    texts = dataset.select_columns([name for name in TEXTS if name in names]).with_format(None)
    texts = texts.map(
        _align_text, with_indices=True, fn_kwargs={"source": source}, features=TEXTS, desc="aligning texts"
    )
    if "images" not in names:
        return texts
    images = dataset.select_columns(["images"]).with_format(None)
    if images.features["images"] == List(Image()):
        images.info.features["images"] = IMAGES  # the same bytes; a cast would copy all of them
    elif images.features["images"] != IMAGES:
        images = images.cast_column("images", IMAGES)  # paths
    return concatenate_datasets([texts, images], axis=1)


def _align_text(row: Mapping, index: int, source: str) -> dict:
    name = str(row["id"] if row.get("id") is not None else f"{source}/{index}")
    if any(picture is not None for picture in pictures_in(row["messages"])):
        raise ValueError(f"Sample `{name}` has pictures inside its messages. Move them to the column `images`.")
    image_id = row.get("image_id")
    if image_id is not None and not isinstance(image_id, list):
        image_id = [image_id]
    return {
        "id": name,
        "image_id": None if image_id is None else [str(one) for one in image_id],
        "messages": [{"role": m["role"], "content": _parts(m["content"])} for m in row["messages"]],
        "source": row.get("source") or source,
    }


def _parts(content: str | list[dict]) -> list[dict]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return [{"type": part["type"], "text": part.get("text")} for part in content]
