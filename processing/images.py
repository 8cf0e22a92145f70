"""Images: from whatever people hand over to an upright RGB picture, and the stock image processor that makes tensors.

Here: `open_image`, the one door through which pictures come in (a refusal is an `ImageError` that names the image);
`image_processor_for`, which gives a vision tower's own image processor the aspect `square` or `pad`; `image_side`.

Not here: fetching (no URL is ever opened), counting image tokens, tiling, batches. Colour profiles are not applied and
only the first frame of an animation or page of a document is read.
"""

import base64
import binascii
import re
import threading
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from transformers import BaseImageProcessor, LlavaImageProcessorPil


# Formats a picture may come in. A closed list, because Pillow also knows formats that start other programs (EPS runs
# Ghostscript) or have no signature and accept anything.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# The count above which Pillow itself raises `DecompressionBombError` (twice its `MAX_IMAGE_PIXELS`).
MAX_PIXELS = 178_956_970

# `pad` pastes the picture on a square of its longer side, and resizing holds about 16 bytes for each pixel of that
# square: 4.3 GB at this side, which admits phone panoramas (16,382 px wide) and every WebP.
MAX_SIDE = 16_384

# `square` resizes the shorter side to the tower's, so the longer one grows by the ratio: 336 x 33,600 at this one. The
# tower would see only a few pixels of a thinner strip.
MAX_RATIO = 100

# What `pad` takes over from the tower's image processor.
CARRIED_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
CARRIED_VALUES = ("size", "resample", "rescale_factor", "image_mean", "image_std")

TRANSPOSE_TO_UPRIGHT = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = Image.Image | str | Path | bytes | dict[str, Any] | np.ndarray


class ImageError(ValueError):
    """A picture that cannot be used: what was found, what was wanted, what to do."""


class _StrictPillow:
    """While entered, Pillow raises on a cut file and is silent about metadata, whatever the process has set.

    Both settings are global (`LOAD_TRUNCATED_IMAGES`, the warning filters). Entries are counted, so that threads can
    decode side by side: the first one in saves the settings, the last one out puts them back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_entered = 0

    def __enter__(self) -> None:
        with self.lock:
            self.num_entered += 1
            if self.num_entered == 1:
                self.fills_cut_files = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")  # sizes, which it also warns of, are checked here

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.num_entered -= 1
            if self.num_entered == 0:
                self.filters.__exit__(None, None, None)
                ImageFile.LOAD_TRUNCATED_IMAGES = self.fills_cut_files


_strict_pillow = _StrictPillow()


def open_image(source: ImageSource, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in `source`, complete, upright and in mode RGB; always a new image without metadata.

    Transparency is laid over white. Grey of more than 8 bits is scaled linearly, never stretched to the picture's own
    range: 16-bit values count to 65,535; 32-bit and float values to the smallest of 1 (float only), 255 and 65,535
    that none of them exceeds, and are refused if that makes the brightest of them less than 1/64 of white.

    Args:
        source: a PIL image (at the frame it is at), the path of a local file, encoded bytes, a `datasets` dict of
            `bytes` and `path`, a base64 `data:` URL, or a uint8 array of H x W, H x W x 3 or H x W x 4.
        name: what messages call it. With backticks in it, it is taken as it is: "`0001.jpg` of conversation `7`".
        max_pixels: a picture with more is refused before it is decoded.

    Raises:
        ImageError: for everything that is not a complete picture of reasonable size.
    """
    bytes_or_path: Any = source
    if isinstance(source, dict):
        bytes_or_path = source.get("bytes")
        if bytes_or_path is None:
            bytes_or_path = source.get("path")
        elif name is None and source.get("path"):
            name = str(source["path"])
    called = _called(bytes_or_path, name)

    match bytes_or_path:
        case Image.Image():
            return _to_upright_rgb(bytes_or_path, called, max_pixels)
        case np.ndarray():
            return _to_upright_rgb(_image_of_array(bytes_or_path, called), called, max_pixels)
        case bytes() | bytearray() | memoryview():
            return _decode(BytesIO(bytes_or_path), called, max_pixels)
        case str() if bytes_or_path[:5].lower() == "data:":
            return _decode(BytesIO(_bytes_of_data_url(bytes_or_path, called)), called, max_pixels)
        case str() if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", bytes_or_path):
            raise ImageError(
                f"{called} is a URL, and nothing is fetched here. Download it first and give the path of the file."
            )
        case str() | Path():
            return _open_file(Path(bytes_or_path), called, max_pixels)
    if isinstance(source, dict):
        found = {key: type(value).__name__ for key, value in source.items()}
        raise ImageError(f"{called} is a dict of {found}. Give it `bytes` (an encoded file) or `path` (a local file).")
    raise ImageError(
        f"{called} is of type `{type(source).__name__}`. Give a PIL image, a path, bytes, a dict of `bytes` and "
        "`path`, a base64 `data:` URL or a uint8 array."
    )


def _called(source: object, name: str | None) -> str:
    """How messages call the image: by its name, else by its path, else by the kind of source."""
    if name is None:
        match source:
            case str() if source[:5].lower() == "data:":
                return "Image (a `data:` URL)"
            case str() | Path():
                name = str(source) if len(str(source)) <= 200 else str(source)[:200] + "…"
            case Image.Image() if isinstance(source, ImageFile.ImageFile) and source.filename:
                name = str(source.filename)
            case Image.Image():
                return "Image (a PIL image)"
            case np.ndarray():
                return "Image (an array)"
            case bytes() | bytearray() | memoryview():
                return f"Image ({len(source)} bytes)"
            case _:
                return "Image"
    return f"Image {name}" if "`" in name else f"Image `{name}`"


def _image_of_array(array: np.ndarray, called: str) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"{called} has shape {array.shape} and type {array.dtype}; wanted height x width, or height x width x 3 "
            "(RGB) or 4 (RGBA), of uint8. Transpose or scale it first."
        )
    if array.size == 0:
        height, width = array.shape[:2]
        return Image.new("RGB", (width, height))  # refused by its size; Pillow makes no empty image of an array
    return Image.fromarray(array)


def _bytes_of_data_url(url: str, called: str) -> bytes:
    header, comma, text = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError(
            f"{called} begins with `{header[:60]}`; wanted `data:<type>;base64,<data>`. Encode the file with base64."
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"{called} holds text that is not base64 ({error}). Encode the whole file with `base64.b64encode`."
        ) from error


def _open_file(path: Path, called: str, max_pixels: int) -> Image.Image:
    try:
        if path.is_dir():
            raise ImageError(f"{called} is a directory; wanted an image file. Give the path of one file in it.")
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise ImageError(f"{called} is neither a file nor a link to one; wanted an image file. Copy it to a file.")
        with path.open("rb") as file:  # a file object, since Pillow would map a file that it opens by path
            return _decode(file, called, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"{called} does not exist (looked for `{path.absolute()}`). Check the path and the image root."
        ) from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        raise ImageError(f"{called} cannot be read: {error}. Check the path and its permissions.") from error


def _decode(file: IO[bytes], called: str, max_pixels: int) -> Image.Image:
    head = file.read(256)
    if not head:
        raise ImageError(f"{called} is empty (0 bytes). Download or export it again, or leave it out.")
    try:
        with _strict_pillow:
            image = _read_header(file)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{called} is not an image: it {_looks_like(head)}; wanted one of {', '.join(FORMATS)}. "
            "Download or convert it again, or leave it out."
        ) from error
    except Exception as error:  # Pillow's readers raise nearly anything on hostile bytes
        _refuse_broken(called, error)
    return _to_upright_rgb(image, called, max_pixels)


def _read_header(file: IO[bytes]) -> Image.Image:
    """`Image.open` for the formats above, without its limit on pixels: that one cannot name the size, ours can."""
    Image.init()
    file.seek(0)
    head = file.read(16)
    for image_format in FORMATS:
        reader, accepts = Image.OPEN[image_format]
        if accepts is None or accepts(head) is True:
            file.seek(0)
            return reader(file, "")
    raise UnidentifiedImageError


def _looks_like(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "looks like HTML, as a dead link saved under an image's name does"
    if text.startswith((b"<?xml", b"<svg", b"<error")):
        return "looks like XML (an SVG drawing or a server's error message)"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, to be replaced by `git lfs pull`"
    if head[4:8] == b"ftyp":
        return f"is a video or a HEIF picture of brand {head[8:12]!r}"
    return f"begins with {head[:16]!r}"


def _refuse_broken(called: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    # Readers check what `_check_size` cannot see: a WebP before its size is known, a GIF's frames, a TIFF's tiles.
    found = "too large" if isinstance(error, Image.DecompressionBombError) else "broken or cut short"
    raise ImageError(
        f"{called} is {found} ({reason}); wanted a complete image. Download or export it again, or leave it out."
    ) from error


def _to_upright_rgb(image: Image.Image, called: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, called, max_pixels)
    try:
        with _strict_pillow:
            image.load()
            rgb = _to_rgb(image, called)
            transpose = TRANSPOSE_TO_UPRIGHT.get(_orientation(image))
            rgb = rgb if transpose is None else rgb.transpose(transpose)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        _refuse_broken(called, error)
    rgb.info = {}  # among it the orientation, which must not be applied again
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # garbled EXIF of a good picture; as stored then, which is how viewers show it
        return 1


def _check_size(size: tuple[int, int], called: str, max_pixels: int) -> None:
    width, height = size
    found = f"{called} is {width} x {height} pixels"
    if width < 1 or height < 1:
        raise ImageError(f"{found}; wanted at least 1 x 1. Leave it out.")
    if width * height > max_pixels:
        raise ImageError(
            f"{found}, {width * height:,} in all; wanted at most {max_pixels:,}. Scale it down, or raise `max_pixels` "
            "if its origin is trusted."
        )
    if max(size) > MAX_RATIO * min(size):
        raise ImageError(f"{found}; wanted sides of a ratio of at most {MAX_RATIO}:1. Crop it, or leave it out.")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{found}; wanted at most {MAX_SIDE:,} on a side. Scale it down or cut it into pieces.")


def _to_rgb(image: Image.Image, called: str) -> Image.Image:
    """A new RGB image; where alpha is below 255, over white. With no such pixel it equals `image.convert("RGB")`."""
    if image.mode == "LAB":  # the one mode that Pillow cannot convert
        raise ImageError(f"{called} is of mode `LAB`; wanted one with a way to RGB. Convert it with its profile.")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey_to_8_bit(image, called).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # premultiplied, and convertible to LA only
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _grey_to_8_bit(image: Image.Image, called: str) -> Image.Image:
    """Scaled so that full scale is 255, rounded to the nearest; a PNG's transparent value becomes white."""
    values = np.asarray(image).astype(np.float32)
    low, high = values.min(), values.max()
    scales = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    full_scale = next((scale for scale in scales if high <= scale), None)
    too_dark = full_scale not in (None, scales[0]) and high < full_scale / 64
    if full_scale is None or too_dark or not low >= 0:  # a NaN compares false to everything
        raise ImageError(
            f"{called} is grey of mode `{image.mode}` with values from {low:g} to {high:g}; wanted 0 to one of "
            f"{', '.join(map(str, scales))}. Scale it to 8 bits first: which value is white cannot be known."
        )
    grey = np.floor(values * np.float32(255 / full_scale) + np.float32(0.5)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def image_processor_for(
    tower_image_processor: BaseImageProcessor, aspect: Literal["square", "pad"]
) -> BaseImageProcessor:
    """The stock image processor with which a vision tower sees pictures in this aspect.

    `square`: the tower's own processing, unchanged (CLIP's resizes the shorter side and crops the centre). `pad`: the
    picture is centred on a square of the tower's mean colour, so that nothing is cut off, and then processed as before
    (where a tower resizes to more than it crops to, as DINOv2's does, the crop still takes the border).

    `pad` is Pillow's arithmetic, pixel for pixel the original LLaVA's. It is saved as `LlavaImageProcessor`, which the
    stock Auto classes load as this very class without torchvision, and with torchvision as the torchvision one, whose
    resizing differs a little unless `backend="pil"` is asked for.

    Args:
        tower_image_processor: as loaded with the vision tower. Its processing must come down to resize, crop, rescale
            and normalize, to a square of a fixed side.
        aspect: `square` or `pad`.
    """
    if aspect not in ("square", "pad"):
        raise ValueError(f"Aspect `{aspect}` is not known; wanted `square` or `pad`.")
    kind = type(tower_image_processor).__name__
    height, width = image_side(tower_image_processor)
    if height != width:
        raise ValueError(f"`{kind}` gives images of {height} x {width}; wanted a square. Set its crop or size to one.")
    facts = tower_image_processor.to_dict()
    if aspect == "square":
        if facts.get("do_pad"):
            raise ValueError(
                f"`{kind}` has `do_pad` set, and aspect `square` does not pad. Unset it, or choose `pad`."
            )
        return tower_image_processor

    mean = facts.get("image_mean")
    if not isinstance(mean, (list, tuple)) or len(mean) != 3:
        raise ValueError(f"`{kind}` has `image_mean` {mean}; wanted three numbers, the colour to pad with.")
    carried: dict[str, Any] = {key: facts[key] for key in CARRIED_VALUES if key in facts}
    carried |= {key: bool(facts.get(key)) for key in CARRIED_FLAGS}  # said even where the tower says nothing
    carried["crop_size"] = {"height": height, "width": width}  # stock LLaVA counts tokens by it, cropping or not
    padding = LlavaImageProcessorPil(do_pad=True, **carried)
    _check_same_on_squares(padding, tower_image_processor, side=height)
    return padding


def _check_same_on_squares(padding: BaseImageProcessor, tower: BaseImageProcessor, side: int) -> None:
    """A square needs no padding, so both must make the same of it; a tower that does more than we carried is found."""
    ramp = np.linspace(0, 255, 2 * side).astype(np.uint8)
    square = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, None], 255 - ramp), axis=-1))
    ours, theirs = (np.asarray(processor(square)["pixel_values"][0]) for processor in (padding, tower))
    tolerance = 4 * np.ptp(ours) / 255  # of grey levels: torchvision's resizing is not Pillow's to the last one
    if ours.shape != theirs.shape or np.abs(ours - theirs).max() > tolerance:
        raise ValueError(
            f"`{type(tower).__name__}` does more than resize, crop, rescale and normalize, so it cannot be padded "
            "without changing what its tower sees. Choose aspect `square`, or another tower."
        )


def image_side(image_processor: BaseImageProcessor) -> tuple[int, int]:
    """(height, width) in pixels of every image that comes out, whatever goes in."""
    # Asked for with every conversation, and `to_dict` copies everything.
    do_center_crop, do_resize = (getattr(image_processor, name, None) for name in ("do_center_crop", "do_resize"))
    last_step = "crop_size" if do_center_crop else "size" if do_resize else None
    side = (last_step and getattr(image_processor, last_step, None)) or {}
    if not side.get("height") or not side.get("width"):
        facts = image_processor.to_dict()
        found = {key: facts.get(key) for key in ("do_resize", "size", "do_center_crop", "crop_size")}
        raise ValueError(
            f"`{type(image_processor).__name__}` gives images of no fixed size: {found}. Wanted a `crop_size` that is "
            "applied, or a `size` of `height` and `width`."
        )
    return side["height"], side["width"]
