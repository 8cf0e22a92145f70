"""Pictures as files or encoded bytes: looked at before anything is paid for them, and read into rows."""

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .rejections import Rejected


SIDE = 320  # pixels of a picture on a page


def check_picture(image: Path | bytes | None) -> None:
    """`Rejected` for what is no picture, by its header: a broken end of the file shows only when it is used."""
    if image is None:
        raise Rejected("no-picture", "annotations without a picture; wanted a file or its bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(image) if isinstance(image, bytes) else image):
                return
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        detail = f"it cannot be opened: {' '.join(str(error).split())[:200]}. Repair or remove the picture."
        raise Rejected("unreadable-picture", detail) from error


def embedded(image: Path | bytes | None) -> dict[str, Any]:
    """What an `Image` column stores."""
    if isinstance(image, Path):
        return {"bytes": image.read_bytes(), "path": image.name}
    return {"bytes": image, "path": None}


def path_from(image: Path | bytes | None, root: Path | None) -> str:
    """The path as rows hold it: from `root` where the picture lies under it, else the whole of it."""
    if not isinstance(image, Path):
        raise ValueError("The source has the bytes of its pictures, not paths. Embed them.")
    if root is not None and image.is_relative_to(root):
        return image.relative_to(root).as_posix()
    return str(image.absolute() if root is not None else image)


def thumbnail(image: Path | bytes) -> str:
    """The picture for a page; empty where it cannot be decoded."""
    try:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as picture:
            return data_url(picture.convert("RGB"))
    except Exception:  # as above; the page is the place where this is seen
        return ""


def data_url(picture: Image.Image) -> str:
    """An RGB picture for a page, which it is made small for."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
