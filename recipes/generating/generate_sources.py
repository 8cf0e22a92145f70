"""The flags of `llava generate` that say where annotated images are, and the images that they name."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_generation.coco import read_coco
from data_generation.microworld.scene import SPLITS
from data_generation.microworld.source import read_microworld
from data_generation.rejections import Counts
from data_generation.sources import AnnotatedImage
from data_generation.tables import Columns, read_dataset, read_jsonl


# Which flags go with which source; the others' would be ignored.
FLAGS = {
    "coco": {"captions", "instances", "image_root"},
    "hf": {"data", "split", "name", "image_root", "image_column", "captions_column", "boxes_column", "labels_column"}
    | {"id_column", "width_column", "height_column", "box_format", "box_scale"},
    "jsonl": {"data", "image_root"},
    "microworld": {"split"},
}


@dataclass(frozen=True)
class Source:
    """Images that can be read again and again. `root`: the folder their paths start from; None if they have none."""

    name: str
    root: Path | None
    read: Callable[[Counts], Iterator[AnnotatedImage]]


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("annotated images")
    group.add_argument(
        "--source", choices=FLAGS, required=True, help="COCO's JSON, a Hugging Face data set, JSONL, drawn"
    )
    group.add_argument("--source-name", help="what rows say they come from (coco, or the data set's name)")
    group.add_argument("--captions", type=Path, metavar="FILE", help="coco: captions_*.json")
    group.add_argument("--instances", type=Path, metavar="FILE", help="coco: instances_*.json, for boxes")
    group.add_argument("--image-root", type=Path, metavar="DIR", help="folder of the pictures")
    group.add_argument("--data", help="jsonl: the file; hf: Hub id, folder, .parquet or .jsonl")
    group.add_argument("--name", help="hf: configuration of the data set")
    group.add_argument("--split", help=f"hf: split; microworld: one of {', '.join(SPLITS)} (train)")
    columns = "hf: column, dots go into structs, as objects.bbox"
    group.add_argument("--image-column", metavar="NAME", help="hf: column of the pictures (image)")
    for column in ("captions", "boxes", "labels", "id", "width", "height"):
        group.add_argument(f"--{column}-column", metavar="NAME", help=columns)
    group.add_argument("--box-format", choices=("xyxy", "xywh"), help="hf: corners, or corner and size (xyxy)")
    group.add_argument("--box-scale", choices=("absolute", "normalised"), help="hf: pixels, or 0 to 1 (absolute)")


def open_source(args: argparse.Namespace) -> Source:
    given = {flag for flag in set.union(*FLAGS.values()) if getattr(args, flag) is not None}
    if odd := sorted(given - FLAGS[args.source]):
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in odd)
        raise ValueError(f"{flags}: not for --source {args.source}. Leave out, or take another source.")
    if args.image_root is not None and not args.image_root.is_dir():
        raise ValueError(f"--image-root `{args.image_root}` is no folder. Check the path.")
    if args.source == "coco":
        files = [file for file in (args.captions, args.instances) if file is not None]
        if not files:
            raise ValueError("--source coco needs --captions, --instances or both.")
        for file in files:
            check_file(file)
        read = partial(read_coco, captions=args.captions, instances=args.instances, image_root=args.image_root)
        return Source(args.source_name or "coco", args.image_root, read)
    if args.source == "microworld":
        if args.limit is None:
            raise ValueError("--source microworld has no end. Say how many pictures with --limit.")
        read = partial(read_microworld, split=check_split(args.split or "train"), count=args.limit)
        return Source(args.source_name or "microworld", None, read)
    if args.data is None:
        raise ValueError(f"--source {args.source} needs --data.")
    name = args.source_name or (Path(args.data).stem if Path(args.data).exists() else args.data)
    if args.source == "jsonl":
        path = Path(args.data)
        check_file(path)
        return Source(name, args.image_root or path.parent, partial(read_jsonl, path=path, image_root=args.image_root))
    rows = load(args.data, args.name, args.split or "train")
    if args.source_name is None:  # parts of one data set are not the same source
        name = " ".join([name, *filter(None, [args.name, args.split if args.split != "train" else None])])
    return Source(
        name,
        args.image_root,
        partial(read_dataset, rows=rows, columns=columns_of(args), image_root=args.image_root),
    )


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"There is no split `{split}` of the micro world. Wanted one of {', '.join(SPLITS)}.")
    return split


def check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"`{path}` is no file. Check the path.")


def columns_of(args: argparse.Namespace) -> Columns:
    return Columns(
        image=args.image_column or "image",
        captions=args.captions_column,
        boxes=args.boxes_column,
        labels=args.labels_column,
        id=args.id_column,
        width=args.width_column,
        height=args.height_column,
        box_format=args.box_format or "xyxy",
        box_scale=args.box_scale or "absolute",
    )


def load(data: str, name: str | None, split: str):
    """On disk and mapped, not streamed: a run reads its source more than once."""
    from datasets import load_dataset

    path = Path(data)
    if path.suffix in (".parquet", ".jsonl"):
        check_file(path)
        kind = "parquet" if path.suffix == ".parquet" else "json"
        return load_dataset(kind, data_files=data, split=split)
    return load_dataset(str(path.resolve()) if path.exists() else data, name, split=split)
