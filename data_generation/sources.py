"""Annotated images, one at a time: captions and labelled boxes of a picture, from wherever people keep them.

    counts = Counts()
    for image in read_coco(counts, captions=Path("captions_train2017.json"), instances=..., image_root=...):
        ...
    print(counts)

COCO files are read in `coco.py`, JSONL and Hugging Face data sets in `tables.py`; all go through `annotate`, which
checks. Pictures stay closed, except that a header is read where boxes are in pixels and nobody says the picture's
size.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .rejections import Rejected


# A box may pass the picture's edge by this much before it is called wrong, and is cut there: annotators and roundings
# overshoot by a fraction of a pixel or of the third decimal.
SLACK_PIXELS = 1.0
SLACK_UNIT = 0.002
LONGEST_SIDE = 10**9  # pixels

BoxFormat = Literal["xyxy", "xywh"]
BoxScale = Literal["absolute", "normalised"]


@dataclass(frozen=True, slots=True)
class Box:
    """What is where: left, top, right, bottom from 0 to 1 of the whole picture."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A picture by what people wrote about it.

    Args:
        id: unique in its source.
        image: a file, or its encoded bytes; None where only the annotations are at hand.
        captions: sentences, none of them empty or of several lines.
        boxes: in the source's order.
        width, height: in pixels, where known.
    """

    id: str
    image: Path | bytes | None
    captions: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class RawBox:
    """A box as a source has it: four numbers that `annotate` is to read by format and scale."""

    label: Any
    numbers: Any


def annotate(
    name: str,
    image: Path | bytes | None,
    captions: list[Any],
    boxes: list[RawBox],
    size: tuple[Any, Any] = (None, None),
    box_format: BoxFormat = "xyxy",
    box_scale: BoxScale = "normalised",
    need_captions: bool = True,
) -> AnnotatedImage:
    """The annotated image, or `Rejected` with the reason."""
    sentences = tuple(check_caption(caption) for caption in captions)
    if need_captions and not sentences:
        raise Rejected("no-caption", "no caption; wanted at least one. Add one or remove the row.")
    if not sentences and not boxes:
        raise Rejected("no-annotation", "neither caption nor box: nothing to write about. Remove the row.")
    width, height = check_size(size)
    if boxes and box_scale == "absolute" and (width is None or height is None):
        width, height = size_of_picture(image)
    scale = (float(width or 1), float(height or 1)) if box_scale == "absolute" else (1.0, 1.0)
    return AnnotatedImage(
        name, image, sentences, tuple(unit_box(box, box_format, scale) for box in boxes), width, height
    )


def check_caption(caption: Any) -> str:
    if not isinstance(caption, str):
        raise Rejected("odd-caption", f"a caption is {shown(caption)}, wanted a string. Name the column of the text.")
    check_unicode(caption)
    sentence = " ".join(caption.split())  # one line each in the teacher's context
    if not sentence:
        raise Rejected("empty-caption", "a caption without words. Remove it from the row.")
    return sentence


def check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Rejected("bad-unicode", f"half a surrogate pair at character {error.start} of {shown(text)}.") from error


def check_size(size: tuple[Any, Any]) -> tuple[int | None, int | None]:
    if size[0] is None or size[1] is None:
        return None, None
    for side in size:
        if isinstance(side, bool) or not isinstance(side, (int, float)) or not 1 <= side <= LONGEST_SIDE:
            raise Rejected("odd-size", f"a size of {shown(size[0])} x {shown(size[1])}, wanted pixels from 1 upward.")
    return int(size[0]), int(size[1])


def size_of_picture(image: Path | bytes | None) -> tuple[int, int]:
    if image is None:
        raise Rejected("no-size", "boxes in pixels, but neither the picture nor its size. Give width and height.")
    try:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as picture:
            return picture.size
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        raise Rejected(
            "unreadable-picture", f"its size cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error


def unit_box(box: RawBox, box_format: BoxFormat, scale: tuple[float, float]) -> Box:
    """The box from 0 to 1; `scale` is width and height of the picture in the box's unit."""
    label = box.label.strip() if isinstance(box.label, str) else ""
    if not label or "\n" in label:
        raise Rejected("odd-label", f"the box {shown(box.numbers)} has the label {shown(box.label)}, wanted a name.")
    check_unicode(label)
    numbers = list(box.numbers) if isinstance(box.numbers, (list, tuple)) else []
    if len(numbers) != 4 or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
        raise Rejected("odd-box", f"the box of `{label}` is {shown(box.numbers)}, wanted four numbers.")
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except OverflowError:
        x1 = y1 = x2 = y2 = math.inf
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise Rejected("non-finite-box", f"the box of `{label}` is {shown(box.numbers)}, wanted finite numbers.")
    if box_format == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if x2 <= x1 or y2 <= y1:
        raise Rejected(
            "empty-box", f"the box of `{label}` is {shown(box.numbers)} ({box_format}), which covers nothing."
        )
    width, height = scale
    slack = SLACK_UNIT if scale == (1.0, 1.0) else SLACK_PIXELS
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        raise Rejected(
            "box-outside",
            f"the box of `{label}` is {shown(box.numbers)} ({box_format}), the picture ends at {width:g} x "
            f"{height:g}. Check the boxes' format and scale.",
        )
    cut = [min(max(n / side, 0.0), 1.0) for n, side in ((x1, width), (y1, height), (x2, width), (y2, height))]
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise Rejected("empty-box", f"the box of `{label}` is {shown(box.numbers)}: all of it is off the picture.")
    return Box(label, *cut)


def shown(value: Any) -> str:
    """A value for a message: short, and never a whole picture or book."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
