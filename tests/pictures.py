"""Small pictures, what they are as a file of each format, and how a refusal of one is looked at."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from processing.images import ImageError, open_image


def blocks(width=60, height=40, seed=0) -> Image.Image:
    """A picture of coloured blocks, different in every corner."""
    colours = np.random.default_rng(seed).integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(10, axis=0).repeat(10, axis=1)[:height, :width])


def noise(width, height, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, image_format: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **how)
    return file.getvalue()


def pixels(image: Image.Image) -> list[list[tuple[int, int, int]]]:
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def assert_same_picture(found: Image.Image, wanted: Image.Image) -> None:
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def refused(source, *parts: str, **how) -> str:
    """The message of the refusal, which must hold every one of the parts."""
    with pytest.raises(ImageError) as caught:
        open_image(source, **how)
    message = str(caught.value)
    for part in parts:
        assert part in message
    return message


ALL_FORMATS = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "MPO": {"save_all": True, "append_images": [blocks(seed=1)]},
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "PPM": {},
    "AVIF": {},
    "JPEG2000": {},
}


def png(width: int, height: int, bits=8, colour=2, rows=b"", chunks=b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
