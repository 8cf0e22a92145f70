"""Annotated images from rows: JSONL files, and any Hugging Face data set by the names of its columns."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .rejections import Counts, Rejected
from .sources import AnnotatedImage, BoxFormat, BoxScale, RawBox, annotate, check_unicode, shown


@dataclass(frozen=True)
class Columns:
    """Where a data set keeps what; a dot goes into a struct or into each struct of a list (`objects.bbox`).

    Args:
        captions: a string, a list of strings, or with a dot the strings in a list of structs (`sentences.raw`).
        boxes, labels: as many labels as boxes; whole numbers are looked up in the `ClassLabel` of the column.
        id: without it rows are called by their number.
    """

    image: str = "image"
    captions: str | None = None
    boxes: str | None = None
    labels: str | None = None
    id: str | None = None
    width: str | None = None
    height: str | None = None
    box_format: BoxFormat = "xyxy"
    box_scale: BoxScale = "absolute"

    def __post_init__(self) -> None:
        if not self.captions and not self.boxes:
            raise ValueError("Neither `captions` nor `boxes` names a column. Say where the annotations are.")
        if bool(self.boxes) != bool(self.labels):
            raise ValueError("`boxes` and `labels` go together. Name both columns, or neither.")

    def named(self) -> list[str]:
        names = (self.image, self.captions, self.boxes, self.labels, self.id, self.width, self.height)
        return [name for name in names if name]


def read_dataset(
    counts: Counts, rows: Iterable[Mapping[str, Any]], columns: Columns, image_root: Path | None = None
) -> Iterator[AnnotatedImage]:
    """Images of a `Dataset`, an `IterableDataset` or any rows; pictures stay encoded.

    Args:
        image_root: the folder that paths of pictures start from.
    """
    names: dict[str, list[str]] = {}
    if isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        features = rows.features or {}
        missing = [name for name in columns.named() if features and name.split(".")[0] not in features]
        if missing:
            raise ValueError(
                f"The data set has no column {', '.join(f'`{name}`' for name in missing)}, but "
                f"{', '.join(features)}. Name its columns."
            )
        if isinstance(features.get(columns.image), datasets.Image):
            rows = rows.cast_column(columns.image, datasets.Image(decode=False))
        if columns.labels and features:
            names[columns.labels] = class_names(features, columns.labels)
    seen: set[str] = set()
    for number, row in enumerate(rows):
        name = str(number)
        try:
            if columns.id is not None:
                name = identity(dig(row, columns.id), seen, name)
            captions = dig(row, columns.captions) if columns.captions else []
            boxes, labels = (dig(row, column) if column else [] for column in (columns.boxes, columns.labels))
            width, height = (dig(row, column) if column else None for column in (columns.width, columns.height))
            annotated = annotate(
                name,
                picture_of(dig(row, columns.image), image_root),
                as_list(captions),
                labelled(boxes, labels, names.get(columns.labels or "", [])),
                (width, height),
                columns.box_format,
                columns.box_scale,
                need_captions=columns.captions is not None,
            )
        except Rejected as rejection:
            counts.reject(name, rejection)
            continue
        counts.keep()
        yield annotated


def dig(row: Any, path: str) -> Any:
    """What is at the path; through lists it takes from every element."""
    value = row
    for key in path.split("."):
        if isinstance(value, (list, tuple)):
            value = [dig(one, key) for one in value]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            raise Rejected("no-column", f"no `{key}` of `{path}` in {shown(value)}.")
    return value


def class_names(features: Any, path: str) -> list[str]:
    """The names of the `ClassLabel` at the path, none if there is another type."""
    for key in path.split("."):
        while not isinstance(features, Mapping) and hasattr(features, "feature"):
            features = features.feature
        features = features[0] if isinstance(features, list) else features
        features = features.get(key) if isinstance(features, Mapping) else None
    while hasattr(features, "feature"):
        features = features.feature
    return list(features.names) if isinstance(features, datasets.ClassLabel) else []


def identity(value: Any, seen: set[str], fallback: str) -> str:
    """The id as a string that no earlier row has."""
    if value is None or value == "" or not isinstance(value, (str, int)) or isinstance(value, bool):
        raise Rejected("no-id", f"row {fallback} has the id {shown(value)}, wanted a string or a whole number.")
    name = str(value)
    check_unicode(name)
    if name in seen:
        raise Rejected("duplicate-id", f"row {fallback} has the id `{name}` of an earlier row; the first is kept.")
    seen.add(name)
    return name


def as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def labelled(boxes: Any, labels: Any, names: list[str]) -> list[RawBox]:
    boxes, labels = as_list(boxes), as_list(labels)
    if len(boxes) != len(labels):
        raise Rejected("odd-labels", f"{len(boxes)} boxes and {len(labels)} labels, wanted as many of both.")
    if names:
        unknown = [label for label in labels if not isinstance(label, int) or not 0 <= label < len(names)]
        if unknown:
            raise Rejected("unknown-category", f"label {shown(unknown[0])} of a data set with {len(names)} classes.")
        labels = [names[label] for label in labels]
    return [RawBox(label, box) for label, box in zip(labels, boxes, strict=True)]


def picture_of(value: Any, root: Path | None) -> Path | bytes | None:
    """A file that exists, or bytes; a picture that is open already is encoded again, losslessly."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        file = BytesIO()
        value.save(file, "PNG")
        return file.getvalue()
    if isinstance(value, (bytes, bytearray)) and value:
        return bytes(value)
    if isinstance(value, (str, Path)) and str(value):
        path = Path(root or "", value)
        try:
            is_there = path.is_file()
        except OSError:  # a name too long
            is_there = False
        if not is_there:
            raise Rejected("missing-file", f"no file {shown(str(path))}. Check the path and the image root.")
        return path
    raise Rejected("no-picture", f"the picture is {shown(value)}, wanted bytes, a path or an `Image` column.")


def read_jsonl(counts: Counts, path: Path, image_root: Path | None = None) -> Iterator[AnnotatedImage]:
    """Images of a file with one object per line, in either of two layouts, boxes from 0 to 1:

        {"id": "1", "image": "1.jpg", "captions": ["A cat."], "boxes": [{"label": "cat", "box": [x1, y1, x2, y2]}]}
        {"id": "1", "image": "1.jpg", "captions": ["A cat."], "instances": [{"category": "cat", "bbox": [...]}]}

    The second is that of the context file released with the original. `width` and `height` may be given.

    Args:
        image_root: the folder that paths start from; without it the folder of the file.
    """
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"line {number}"
            try:
                row = json_row(line)
                name = identity(row.get("id"), seen, name)
                annotated = annotate(
                    name,
                    picture_of(row.get("image"), image_root or path.parent),
                    as_list(row.get("captions")),
                    boxes_of(row),
                    (row.get("width"), row.get("height")),
                    need_captions="captions" in row,
                )
            except Rejected as rejection:
                counts.reject(name, rejection)
                continue
            counts.keep()
            yield annotated


def json_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Rejected("no-json", f"{error}; wanted one JSON object on the line.") from error
    if not isinstance(row, dict):
        raise Rejected("no-json", f"the line is {shown(row)}, wanted a JSON object.")
    return row


def boxes_of(row: dict[str, Any]) -> list[RawBox]:
    key, label, numbers = ("instances", "category", "bbox") if "instances" in row else ("boxes", "label", "box")
    entries = as_list(row.get(key))
    odd = [entry for entry in entries if not isinstance(entry, dict) or not {label, numbers} <= entry.keys()]
    if odd:
        raise Rejected("odd-box", f"`{key}` holds {shown(odd[0])}, wanted objects with `{label}` and `{numbers}`.")
    return [RawBox(entry[label], entry[numbers]) for entry in entries]
