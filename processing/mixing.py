"""Several data sets as one, each seen as often as its weight says."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from .conversation import describe, pictures_in


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
UNOPENED = List(Image(decode=False))  # pictures are opened by the collator, with care


def mix(
    datasets: list[Dataset], weights: list[float] | None = None, seed: int = 0, names: list[str] | None = None
) -> Dataset:
    """One data set of `id`, `image_id`, `messages`, `images` and `source`; other columns are left out.

    A float is how often the rows are seen: 2.0 is twice, 0.5 a half of them, chosen by `seed`. An int is a count of
    rows: 500 are that many, of every row equally many, up to one. `source` is the data set's own column, or its name
    of `names`, or its number in the list. Nothing is copied but texts.
    """
    weights = [1.0] * len(datasets) if weights is None else weights
    if len(weights) != len(datasets) or not datasets:
        raise ValueError(f"There are {len(datasets)} data sets and {len(weights)} weights. Give one weight for each.")
    parts = []
    for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
        count = count_rows(weight, len(dataset))
        called = str(number) if names is None else names[number]
        if count < 1 or not len(dataset):
            raise ValueError(
                f"Data set {called} has {len(dataset)} rows and the weight {weight}, which is {count} rows. Raise the "
                "weight, or leave the data set out."
            )
        whole, rest = divmod(count, len(dataset))
        chosen = np.sort(np.random.default_rng([seed, number]).permutation(len(dataset))[:rest])
        aligned = _aligned(dataset, called)
        parts.append(aligned.select(np.concatenate([np.arange(len(dataset))] * whole + [chosen])))
    return concatenate_datasets(parts)


def count_rows(weight: float, length: int) -> int:
    """Rows of the mixture that come from a data set of this length."""
    return weight if isinstance(weight, int) else round(weight * length)


def _aligned(dataset: Dataset, source: str) -> Dataset:
    """With the columns and types that all parts of a mixture have."""
    names = dataset.column_names
    if "messages" not in names:
        raise ValueError(f"Data set {source} has no column `messages`, but {', '.join(names)}. Convert it first.")
    messages = dataset.select_columns(["messages"]).with_format(None)
    if _arrow_type(messages.features["messages"]) != _arrow_type(TEXTS["messages"]):
        about = dataset.select_columns([name for name in ("id", "messages") if name in names]).with_format(None)
        messages = about.map(
            _align_messages,
            with_indices=True,
            batched=True,
            remove_columns=about.column_names,
            fn_kwargs={"source": source},
            features=Features({"messages": TEXTS["messages"]}),
            desc="aligning messages",
        )
    # Any column gives the number of rows.
    labels = dataset.select_columns([name for name in ("id", "image_id", "source") if name in names] or ["messages"])
    labels = labels.with_format(None).map(
        _align_labels,
        with_indices=True,
        batched=True,
        remove_columns=labels.column_names,
        fn_kwargs={"source": source},
        features=Features({name: kind for name, kind in TEXTS.items() if name != "messages"}),
        desc="aligning names",
    )
    texts = concatenate_datasets([labels, messages], axis=1).select_columns(list(TEXTS))
    if "images" not in names:
        return texts
    images = dataset.select_columns(["images"]).with_format(None)
    if images.features["images"] == List(Image()):
        images.info.features["images"] = UNOPENED  # the same bytes; a cast would copy all of them
    elif images.features["images"] != UNOPENED:
        images = images.cast_column("images", UNOPENED)  # paths
    return concatenate_datasets([texts, images], axis=1)


def _arrow_type(feature: Any) -> Any:
    return Features({"column": feature}).arrow_schema.types


def _align_labels(batch: Mapping[str, list], indices: list[int], source: str) -> dict[str, list]:
    nothing = [None] * len(indices)
    image_ids = [one if one is None or isinstance(one, list) else [one] for one in batch.get("image_id", nothing)]
    return {
        "id": _names(batch, indices, source),
        "image_id": [None if one is None else [str(name) for name in one] for one in image_ids],
        "source": [own or source for own in batch.get("source", nothing)],
    }


def _names(batch: Mapping[str, list], indices: list[int], source: str) -> list[str]:
    given = batch.get("id", [None] * len(indices))
    return [f"{source}/{index}" if name is None else str(name) for name, index in zip(given, indices, strict=True)]


def _align_messages(batch: Mapping[str, list], indices: list[int], source: str) -> dict[str, list]:
    aligned = []
    for name, messages in zip(_names(batch, indices, source), batch["messages"], strict=True):
        if not _is_list_of_messages(messages):
            raise ValueError(
                f"Conversation `{name}` of data set {source} has the messages {describe(messages)}; wanted a list of "
                '{"role": ..., "content": ...}, the content a text or a list of parts. Repair or remove it.'
            )
        if any(picture is not None for picture in pictures_in(list(filter(None, messages or [])))):
            raise ValueError(
                f"Conversation `{name}` has pictures inside its messages. Move them to the column `images`."
            )
        aligned.append(messages and [_message(message) for message in messages])
    return {"messages": aligned}


def _is_list_of_messages(messages: Any) -> bool:
    """Nothing where something should be passes: it is counted with its row when conversations are encoded."""
    if messages is None:
        return True
    if not isinstance(messages, list) or not all(isinstance(message, dict | None) for message in messages):
        return False
    contents = [message.get("content") for message in messages if message is not None]
    return all(
        isinstance(content, str | None)
        or (isinstance(content, list) and all(isinstance(part, dict) for part in content))
        for content in contents
    )


def _message(message: dict | None) -> dict | None:
    return message and {"role": message.get("role"), "content": _parts(message.get("content"))}


def _parts(content: str | list[dict] | None) -> list[dict] | None:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return content and [{"type": part.get("type"), "text": part.get("text")} for part in content]
