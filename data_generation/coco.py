"""COCO's annotation files: captions, instances or both, read as a stream.

Of instances_train2017.json (450 MB) only boxes and categories stay in memory, about 300 MB; no picture is opened.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .json_stream import stream_members
from .rejections import Counts, Rejected
from .sources import AnnotatedImage, RawBox, annotate, shown


def read_coco(
    counts: Counts,
    captions: Path | None = None,
    instances: Path | None = None,
    image_root: Path | None = None,
) -> Iterator[AnnotatedImage]:
    """Images of COCO's captions file, its instances file, or both, in the order of the first one given.

    Layouts of 2014 (`COCO_train2014_000000000009.jpg`) and 2017 (`000000000009.jpg`) are both found in a folder that
    has either. Regions of crowds are left out: their label would claim a single object.

    Args:
        image_root: the folder of the pictures. Without it names are given as they are and nothing is looked for.
    """
    files = [file for file in (captions, instances) if file is not None]
    if not files:
        raise ValueError("COCO needs a captions file, an instances file, or both. Give the path of one.")
    pictures: dict[Any, tuple[str, Any, Any]] = {}
    twice = []
    sentences: dict[Any, list[Any]] = defaultdict(list)
    regions: dict[Any, list[tuple[Any, Any]]] = defaultdict(list)  # (category id, numbers)
    labels: dict[Any, str] = {}
    for file in files:
        for key, entry in stream_members(file):
            if key not in ("images", "annotations", "categories"):
                continue
            try:
                if key == "categories":
                    labels[entry["id"]] = entry["name"]
                elif key == "annotations" and file == captions:
                    sentences[entry["image_id"]].append(entry.get("caption"))
                elif key == "annotations" and entry.get("iscrowd"):
                    name = coco_id(entry["image_id"])
                    counts.trim(name, Rejected("crowd-region", "many objects in one box, under the name of one."))
                elif key == "annotations":
                    # The categories may stand behind the annotations: names are looked up at the end.
                    regions[entry["image_id"]].append((entry.get("category_id"), entry.get("bbox")))
                elif entry["id"] not in pictures:
                    pictures[entry["id"]] = (str(entry["file_name"]), entry.get("width"), entry.get("height"))
                elif file == files[0]:
                    twice.append(entry["id"])
            except (KeyError, TypeError) as error:  # no id, or no object at all
                counts.reject(f"{file.name}: {key}", Rejected("odd-entry", f"{shown(entry)} lacks {error}."))
    if not pictures:
        raise ValueError(f"`{files[0]}` has no `images`; wanted a COCO annotation file. Check the path.")
    for image_id in twice:
        counts.reject(coco_id(image_id), Rejected("duplicate-id", "the images list it twice; the first is kept."))
    for image_id in sorted((sentences.keys() | regions.keys()) - pictures.keys(), key=str):
        counts.reject(coco_id(image_id), Rejected("unknown-image", "annotated, but not among `images`."))

    for image_id, (file_name, width, height) in pictures.items():
        name = coco_id(image_id)
        try:
            boxes = [named_box(labels, category, numbers) for category, numbers in regions.get(image_id, [])]
            annotated = annotate(
                name,
                find_coco_picture(image_root, file_name, name) if image_root else Path(file_name),
                sentences.get(image_id, []),
                boxes,
                (width, height),
                "xywh",
                "absolute",
                need_captions=captions is not None,
            )
        except Rejected as rejection:
            counts.reject(name, rejection)
            continue
        counts.keep()
        yield annotated


def coco_pairs(path: Path) -> Iterator[dict[str, Any] | Rejected]:
    """The captions of a captions file in its order, each with the name of its picture as `image`."""
    names: dict[Any, Any] = {}
    for key, entry in stream_members(path):  # the pictures may stand behind the captions
        if key == "images" and isinstance(entry, dict) and isinstance(entry.get("id"), (int, str)):
            names.setdefault(entry["id"], entry.get("file_name"))
    if not names:
        raise ValueError(f"`{path}` has no `images`; wanted a captions file of COCO, or pairs in another form.")
    for key, entry in stream_members(path):
        if key != "annotations":
            continue
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image_id, (int, str)):
            yield Rejected("odd-entry", f"{shown(entry)}, wanted an object with `image_id` and `caption`.")
        elif image_id not in names:
            yield Rejected("unknown-image", f"a caption of picture {shown(image_id)}, which is not among `images`.")
        else:
            yield entry | {"image": names[image_id]}


def named_box(labels: dict[Any, str], category: Any, numbers: Any) -> RawBox:
    if not isinstance(category, (int, str)) or category not in labels:
        raise Rejected("unknown-category", f"a box of category {shown(category)}, which `categories` lacks.")
    return RawBox(labels[category], numbers)


def coco_id(image_id: Any) -> str:
    if isinstance(image_id, int):
        return f"{image_id:012d}"
    return str(image_id).encode(errors="backslashreplace").decode()


def find_coco_picture(root: Path, file_name: str, name: str) -> Path:
    folders = [root, *(root / folder for folder in ("train2017", "val2017", "train2014", "val2014"))]
    names = [file_name, f"{name}.jpg", f"COCO_train2014_{name}.jpg", f"COCO_val2014_{name}.jpg"]
    for candidate in (folder / one for one in names for folder in folders):
        if candidate.is_file():
            return candidate
    raise Rejected("missing-file", f"no `{file_name}` in `{root}`, nor under its name in another of COCO's layouts.")
