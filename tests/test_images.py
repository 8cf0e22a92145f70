"""Pictures come in complete, upright and in the right colours or are refused by name; `pad` is LLaVA's arithmetic."""

import base64
import io
import json
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from processing.images import FORMATS, MAX_PIXELS, ImageError, image_processor_for, image_side, open_image


pytestmark = pytest.mark.filterwarnings("error")  # whatever Pillow warns of is ours to settle


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


@pytest.mark.parametrize("kind", ALL_FORMATS)
def test_every_format_opens_as_pillow_decodes_it(kind, tmp_path):
    data = encoded(blocks(), kind.split()[0], **ALL_FORMATS[kind])
    (tmp_path / "picture").write_bytes(data)  # the content decides, not a suffix
    wanted = Image.open(io.BytesIO(data)).convert("RGB")
    assert wanted.size == (60, 40)
    assert_same_picture(open_image(data), wanted)
    assert_same_picture(open_image(tmp_path / "picture"), wanted)


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    image = blocks()
    path = tmp_path / "a.png"
    image.save(path)
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [
        image,
        Image.open(io.BytesIO(data)),
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        {"bytes": data, "path": None},
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": str(path)},
        {"path": path},
        url,
        url.replace("data:", "DATA:"),
        url[:100] + "\n" + url[100:],
        np.asarray(image),
        np.asarray(image.convert("RGBA")),
        np.asarray(image)[::-1][::-1],
    ]
    for source in sources:
        assert_same_picture(open_image(source), image)
    assert_same_picture(open_image(np.asarray(image.convert("L"))), image.convert("L").convert("RGB"))


@pytest.mark.parametrize("url", ["http://a.b/c.jpg", "HTTPS://a.b/c.jpg", "s3://a/b.png", "file:///a/b.png"])
def test_urls_are_refused(url):
    refused(url, f"Image `{url}` is a URL", "nothing is fetched", "Download it first")
    refused({"bytes": None, "path": url}, f"Image `{url}` is a URL")


def test_other_sources_are_refused(tmp_path):
    refused(None, "Image is of type `NoneType`", "Give a PIL image")
    refused([blocks()], "is of type `list`", name="x")
    refused({"bytes": None, "path": None}, "Image is a dict of {'bytes': 'NoneType', 'path': 'NoneType'}", "Give it")
    refused({"image": b""}, "Image is a dict of {'image': 'bytes'}")
    refused("data:image/png,abc", "Image (a `data:` URL)", "`data:image/png`", "wanted `data:<type>;base64,<data>`")
    url = "data:image/png;base64," + base64.b64encode(encoded(blocks(), "PNG")).decode()
    refused(url[:100] + "*" + url[100:], "is not base64", "Encode the whole file")
    refused("data:image/png;base64,", "is empty (0 bytes)")
    refused(str(tmp_path) + "/a\0b", "cannot be read")
    refused("x" * 5000, "cannot be read", "x" * 200 + "…`")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint16),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(array):
    refused(array, f"Image (an array) has shape {array.shape} and type {array.dtype}", "wanted height x width")


def test_a_message_names_the_image_as_the_caller_does(tmp_path):
    name = "`train2017/0001.jpg` of sample `7`"
    assert refused(b"", name=name).startswith(f"Image {name} is empty")
    assert refused(b"", name="0001.jpg").startswith("Image `0001.jpg` is empty")
    assert refused(b"abc").startswith("Image (3 bytes) is not an image")
    assert refused({"bytes": b"", "path": "a.jpg"}).startswith("Image `a.jpg` is empty")
    assert refused(tmp_path / "a.jpg").startswith(f"Image `{tmp_path / 'a.jpg'}` does not exist")
    assert refused(Image.new("RGB", (0, 5))).startswith("Image (a PIL image) is 0 x 5 pixels")


def test_missing_files_directories_and_pipes_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("no/such.jpg", "Image `no/such.jpg` does not exist", f"`{tmp_path / 'no/such.jpg'}`", "Check the path")
    refused(tmp_path, "is a directory")
    os.mkfifo("pipe")
    refused("pipe", "is neither a file nor a link to one")
    os.symlink("nowhere", "link")
    refused("link", "does not exist")


@pytest.mark.parametrize(
    "content, finding",
    [
        (b"", "is empty (0 bytes)"),
        (b"\n  <!DOCTYPE html><html>404</html>", "looks like HTML, as a dead link saved under an image's name does"),
        (b"\xef\xbb\xbf<html lang='en'>", "looks like HTML"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "looks like XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, to be replaced by `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a video or a HEIF picture of brand b'heic'"),
        (b"%PDF-1.7\n%abcdefghijkl", "begins with b'%PDF-1.7\\n%abcdef'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "begins with b'%!PS-Adobe-3.0 E'"),  # Pillow could
        (b"\0" * 1000, "begins with b'\\x00\\x00"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_looks_like(tmp_path, content, finding):
    path = tmp_path / "0001.jpg"
    path.write_bytes(content)
    message = refused(path, f"Image `{path}` ", finding)
    if content:
        assert f"wanted one of {', '.join(FORMATS)}" in message


CUT_POINTS = np.random.default_rng(0).random(60)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ALL_FORMATS)
def test_a_cut_file_is_refused_or_complete(kind, lenient, monkeypatch):
    # With `LOAD_TRUNCATED_IMAGES`, which many training scripts set, Pillow fills what is missing with grey.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encoded(blocks(), kind.split()[0], **ALL_FORMATS[kind])
    whole = open_image(data)
    num_refused = 0
    for point in CUT_POINTS:
        try:
            cut = open_image(data[: int(point * len(data))])
        except ImageError:
            num_refused += 1
        else:  # the end of a PNG or GIF holds no pixels, that of an MPO another picture
            assert_same_picture(cut, whole)
    enough = {"MPO": 15, "PNG": 50, "GIF": 50}
    assert num_refused >= enough.get(kind, len(CUT_POINTS))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "0001.jpg"
    path.write_bytes(encoded(noise(60, 40), "JPEG")[:-100])
    refused(path, f"Image `{path}` is broken or cut short (image file is truncated", "wanted a complete image")


def test_an_open_image_of_a_cut_file_is_refused_each_time(tmp_path):
    path = tmp_path / "0001.png"
    path.write_bytes(encoded(noise(60, 40), "PNG")[:-500])
    with Image.open(path) as image:
        for _ in range(2):
            refused(image, f"Image `{path}` is broken or cut short")
    closed = Image.open(io.BytesIO(encoded(blocks(), "PNG")))
    closed.close()
    refused(closed, "Image (a PIL image) is broken or cut short")


def png(width: int, height: int, bits=8, colour=2, rows=b"", chunks=b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_header_that_promises_more_than_the_file_holds_is_refused():
    assert open_image(png(1, 1, rows=b"\0\1\2\3")).getpixel((0, 0)) == (1, 2, 3)
    refused(png(2**31 - 1, 2**31 - 1, rows=b"\0\1\2\3"), "is 2147483647 x 2147483647 pixels", "wanted at most")
    refused(png(3000, 2000, rows=b"\0\1\2\3"), "is broken or cut short")
    refused(png(0, 5, rows=b"\0"), "is broken or cut short")


def test_a_text_chunk_that_unpacks_to_gigabytes_is_refused():
    text = b"k\0\0" + zlib.compress(b"\0" * 80_000_000, 1)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    refused(png(1, 1, rows=b"\0\1\2\3", chunks=chunk), "is broken or cut short", "Decompressed data too large")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P6 "])
    | st.sampled_from([b"RIFF\x20\0\0\0WEBPVP8 ", b"\0\0\0\x20ftypavif", b"\0\0\0\x0cjP  \r\n\x87\n"]),
    st.binary(max_size=300),
)
def test_any_bytes_are_an_image_or_an_image_error(signature, rest):
    try:
        assert open_image(signature + rest).mode == "RGB"
    except ImageError as error:
        assert "Image (" in str(error)


VALID = [encoded(blocks(30, 20), kind.split()[0], **how) for kind, how in ALL_FORMATS.items()]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_garbled_file_is_an_image_or_an_image_error(data, changes, only_header):
    garbled = bytearray(data)
    for place, value in changes:
        garbled[place % (min(len(data), 120) if only_header else len(data))] = value
    try:
        assert open_image(bytes(garbled)).mode == "RGB"
    except ImageError:
        return


def test_one_pixel_is_enough_and_none_is_not():
    assert pixels(open_image(Image.new("RGB", (1, 1), (1, 2, 3)))) == [[(1, 2, 3)]]
    assert pixels(open_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))) == [[(1, 2, 3)]]
    for width, height in ((0, 5), (5, 0), (0, 0)):
        refused(Image.new("RGB", (width, height)), f"is {width} x {height} pixels", "wanted at least 1 x 1")
        refused(np.zeros((height, width, 3), np.uint8), f"Image (an array) is {width} x {height} pixels")


def test_more_pixels_than_allowed_are_refused_before_decoding(tmp_path):
    image = blocks(60, 40)
    for source in (image, encoded(image, "PNG"), np.asarray(image)):
        assert open_image(source, max_pixels=2400).size == (60, 40)
        refused(source, "is 60 x 40 pixels, 2,400 in all; wanted at most 2,399", max_pixels=2399)
    lazy = Image.open(io.BytesIO(encoded(image, "PNG")))
    refused(lazy, "wanted at most 2,399", max_pixels=2399)
    assert lazy.tile  # what is still to be decoded


@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_the_limit_is_ours_whatever_pillow_is_told(pillow_limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    assert MAX_PIXELS == 2 * 89_478_485  # where Pillow raises by default; from half of it, it warns
    refused(png(16_000, 12_000), "is 16000 x 12000 pixels, 192,000,000 in all; wanted at most 178,956,970")
    refused(png(16_000, 11_000), "is broken or cut short")  # as large as it may be, and Pillow's warning is held back
    assert open_image(encoded(blocks(), "PNG")).size == (60, 40)


def test_what_a_reader_finds_too_large_is_refused():
    frame = encoded(blocks(), "GIF").replace(b"\x2c\0\0\0\0\x3c\0\x28\0", b"\x2c\0\0\0\0\xff\xff\xff\xff")
    refused(frame, "is too large (Image size (4294836225 pixels) exceeds limit of 178956970 pixels")
    webp = bytearray(encoded(blocks(), "WEBP", save_all=True, append_images=[blocks(seed=1)]))
    webp[24:30] = b"\xfe\x3f\0\xfe\x3f\0"  # the canvas of its VP8X chunk, less one
    # Pillow 13 refuses it while it opens it, 12.3 leaves that to us.
    words = refused(webp).replace(",", "")
    assert "268402689" in words and "178956970" in words


def test_long_and_thin_images_are_refused():
    assert open_image(Image.new("L", (100, 1))).size == (100, 1)
    refused(Image.new("L", (101, 1)), "is 101 x 1 pixels; wanted sides of a ratio of at most 100:1")
    refused(encoded(Image.new("L", (1, 20_000)), "PNG"), "is 1 x 20000 pixels; wanted sides of a ratio of at most")
    refused(encoded(Image.new("L", (16_385, 200)), "PNG"), "is 16385 x 200 pixels; wanted at most 16,384 on a side")
    assert open_image(Image.new("L", (16_384, 200))).size == (16_384, 200)


def test_transparency_is_laid_over_white():
    rgba = Image.new("RGBA", (4, 1))
    rgba.putdata([(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51), (0, 0, 0, 128)])
    wanted = [[(200, 100, 0), (255, 255, 255), (244, 224, 204), (127, 127, 127)]]  # 255 - alpha * (255 - value) / 255
    assert pixels(open_image(rgba)) == wanted
    assert pixels(open_image(encoded(rgba, "PNG"))) == wanted
    assert pixels(open_image(np.asarray(rgba))) == wanted
    la = Image.new("LA", (3, 1))
    la.putdata([(100, 255), (100, 0), (100, 51)])
    assert pixels(open_image(la)) == [[(100,) * 3, (255,) * 3, (224,) * 3]]
    assert pixels(open_image(la.convert("La"))) == [[(100,) * 3, (255,) * 3, (224,) * 3]]


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "PA"])
def test_an_opaque_alpha_channel_changes_nothing(mode):
    image = blocks().convert("L").convert("RGB") if mode == "LA" else blocks().quantize(64).convert("RGB")
    with_alpha = image.quantize(64).convert("PA") if mode == "PA" else image.convert("RGBA").convert(mode)
    assert with_alpha.mode == mode
    assert_same_picture(open_image(with_alpha), image)


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    assert pixels(open_image(encoded(image, "PNG"))) == [[(10, 20, 30), (40, 50, 60), (70, 80, 90)]]
    assert pixels(open_image(encoded(image, "PNG", transparency=1)))[0][1] == (255, 255, 255)
    some = encoded(image, "PNG", transparency=bytes([255, 0, 51]))
    assert pixels(open_image(some)) == [[(10, 20, 30), (255, 255, 255), (218, 220, 222)]]
    assert pixels(open_image(encoded(image, "GIF", transparency=0)))[0][0] == (255, 255, 255)


def test_a_colour_declared_transparent_is_white():
    key = struct.pack(">I4s3H", 6, b"tRNS", 1, 2, 3)
    key += struct.pack(">I", zlib.crc32(key[4:]))
    assert pixels(open_image(png(2, 1, rows=b"\0\1\2\3\4\5\6", chunks=key))) == [[(255,) * 3, (4, 5, 6)]]
    key = struct.pack(">I4sH", 2, b"tRNS", 257)
    key += struct.pack(">I", zlib.crc32(key[4:]))
    grey = png(2, 1, bits=16, colour=0, rows=b"\0\1\1\2\2", chunks=key)
    assert pixels(open_image(grey)) == [[(255,) * 3, (2,) * 3]]


def test_cmyk_and_ycck_jpegs_have_their_colours():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 60, 200)]
    for colour in colours:
        picture = Image.new("RGB", (16, 16), colour)
        cmyk = encoded(picture.convert("CMYK"), "JPEG", quality=100)
        assert b"Adobe\0\x64\0\0\0\0\0" in cmyk  # transform 0: stored as CMYK
        # The same as YCCK (transform 2): Y, Cb and Cr of the CMY, and K; Pillow stores what it is given inverted.
        red, green, blue = (255 - value for value in colour)
        luma, blueness, redness = Image.new("RGB", (1, 1), (red, green, blue)).convert("YCbCr").getpixel((0, 0))
        planes = (255 - luma, 255 - blueness, 255 - redness, 0)
        ycck = encoded(Image.new("CMYK", (16, 16), planes), "JPEG", quality=100)
        ycck = ycck.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\2")
        for data in (cmyk, ycck):
            assert Image.open(io.BytesIO(data)).mode == "CMYK"
            assert np.abs(np.asarray(open_image(data)).astype(int) - colour).max() <= 3


def test_16_bit_grey_is_scaled_to_8():
    values = np.array([[0, 128, 129, 257, 256 * 128, 65534, 65535]], np.uint16)
    wanted = [[(grey,) * 3 for grey in (0, 0, 1, 1, 128, 255, 255)]]  # value / 257, to the nearest
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    assert pixels(open_image(image)) == wanted
    for image_format in ("PNG", "TIFF"):
        assert pixels(open_image(encoded(image, image_format))) == wanted
    big_endian = Image.frombytes("I;16B", (7, 1), values.astype(">u2").tobytes())
    assert pixels(open_image(big_endian)) == wanted
    pgm = b"P5 7 1 65535\n" + values.astype(">u2").tobytes()
    assert pixels(open_image(pgm)) == wanted


@pytest.mark.parametrize(
    "dtype, values, wanted",
    [
        (np.int32, [0, 1, 255], [0, 1, 255]),
        (np.int32, [0, 257, 65535], [0, 1, 255]),
        (np.float32, [0.0, 0.5, 1.0], [0, 128, 255]),
        (np.float32, [0.0, 0.5, 200.4], [0, 1, 200]),
        (np.float32, [0.0, 257.0, 65535.0], [0, 1, 255]),
        (np.float32, [0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_32_bit_and_float_grey_is_scaled_by_the_stated_rule(dtype, values, wanted):
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode == {np.int32: "I", np.float32: "F"}[dtype]
    for source in (image, encoded(image, "TIFF")):
        assert pixels(open_image(source)) == [[(grey,) * 3 for grey in wanted]]


@pytest.mark.parametrize(
    "dtype, values",
    [
        (np.int32, [-1, 5]),
        (np.int32, [0, 65536]),
        (np.int32, [0, 300]),  # of 255 or of 65,535? black in the second case
        (np.float32, [-0.5, 1]),
        (np.float32, [0, 1.1]),
        (np.float32, [0, 300]),
        (np.float32, [0, np.nan]),
        (np.float32, [0, np.inf]),
    ],
)
def test_grey_of_unknown_scale_is_refused(dtype, values):
    image = Image.fromarray(np.array([values], dtype))
    refused(image, "is grey of mode `", "with values from", "65535", "Scale it to 8 bits first")


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "CMYK", "RGBX"])
def test_other_modes_become_what_pillow_converts_them_to(mode):
    image = blocks().convert(mode)
    assert_same_picture(open_image(image), image.convert("RGB"))


def test_one_bit_is_black_and_white():
    image = Image.new("1", (2, 1))
    image.putdata([0, 255])
    assert pixels(open_image(encoded(image, "PNG"))) == [[(0, 0, 0), (255, 255, 255)]]
    assert pixels(open_image(encoded(image, "TIFF", compression="group4"))) == [[(0, 0, 0), (255, 255, 255)]]


def test_a_mode_without_a_way_to_rgb_is_refused():
    lab = Image.new("LAB", (4, 4))
    for source in (lab, encoded(lab, "TIFF")):
        refused(source, "is of mode `LAB`; wanted one with a way to RGB")


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(image_format, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    path = tmp_path / "frames"
    how = {"lossless": True} if image_format == "WEBP" else {}
    frames[0].save(path, image_format, save_all=True, append_images=frames[1:], **how)
    assert_same_picture(open_image(path), frames[0])
    with Image.open(path) as image:
        image.seek(2)
        assert_same_picture(open_image(image), frames[2])
        assert image.tell() == 2


STORED_AS = {  # EXIF orientation: what a camera did to the upright picture
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM],
    6: [Image.Transpose.ROTATE_90],  # to be shown turned clockwise
    7: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_pictures_are_turned_upright(orientation, image_format):
    upright = blocks(60, 40)
    stored = upright
    for step in STORED_AS[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    finest = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0}, "AVIF": {"subsampling": "4:4:4"}}
    data = encoded(stored, image_format, exif=exif, quality=100, **finest.get(image_format, {}))
    found = open_image(data)
    assert found.size == (60, 40)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(upright))
    assert difference.max() <= {"JPEG": 4, "AVIF": 4}.get(image_format, 0)
    assert_same_picture(open_image(Image.open(io.BytesIO(data))), found)
    assert_same_picture(open_image(found), found)  # and not turned once more
    assert not found.info
    assert not found.getexif()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_garbled_exif_is_no_reason_to_lose_a_picture(image_format):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\0\0"):
        assert open_image(encoded(blocks(), image_format, exif=exif)).size == (60, 40)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "CMYK"])
def test_the_callers_image_stays_as_it_was(mode):
    image = blocks().convert("L").convert("I").convert("I;16") if mode == "I;16" else blocks().convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    before = image.copy()
    opened = open_image(image)
    assert image == before  # mode, size, palette, info and pixels
    assert opened.size == (40, 60)
    opened.paste((1, 2, 3), (0, 0, 40, 60))
    assert image == before


def test_an_array_is_not_shared():
    array = np.zeros((4, 5, 3), np.uint8)
    opened = open_image(array)
    array[:] = 255
    assert opened.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
def test_no_file_stays_open(tmp_path):
    paths = [tmp_path / "good.tif", tmp_path / "cut.jpg", tmp_path / "page.html", tmp_path / "good.gif"]
    blocks().save(paths[0], compression="tiff_lzw")
    paths[1].write_bytes(encoded(blocks(), "JPEG")[:-10])
    paths[2].write_bytes(b"<html>")
    frames = [blocks(seed=seed) for seed in range(3)]
    frames[0].save(paths[3], save_all=True, append_images=frames[1:])
    kept = []
    before = len(os.listdir("/proc/self/fd"))
    for path in paths:
        try:
            kept.append(open_image(path))
        except ImageError as error:
            kept.append(error)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_process_keeps_its_settings_under_threads(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    good, cut = encoded(noise(200, 200), "PNG"), encoded(noise(200, 200), "PNG")[:-500]
    filters = list(warnings.filters)
    outcomes = []

    def work():
        for data in [good, cut] * 10:
            try:
                outcomes.append(open_image(data).size)
            except ImageError:
                outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count((200, 200)), outcomes.count("refused")) == (40, 40)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert warnings.filters == filters


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [
    (60, 40),
    (40, 60),
    (41, 41),
    (28, 28),
    (7, 13),
    (61, 17),
    (17, 62),
    (300, 7),
    (1, 1),
    (1, 2),
    (99, 1),
    (1, 99),
]


def original_pad(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """LLaVA's `expand2square`, to the mean colour of the tower."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def original_clip(image: Image.Image, side: int, crop: int, mean=CLIP_MEAN, std=CLIP_STD) -> np.ndarray:
    """What the CLIP image processor of LLaVA's time made of an RGB image: (3, crop, crop), float32."""
    short, long = sorted(image.size)
    long = int(side * long / short)
    image = image.resize((side, long) if image.width <= image.height else (long, side), Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    values = np.array(image.crop((left, top, left + crop, top + crop)))
    values = (values * (1 / 255)).astype(np.float32)  # multiplied in float64
    values = (values - np.array(mean, np.float32)) / np.array(std, np.float32)
    return values.transpose(2, 0, 1)


def pixel_values(processor, image: Image.Image) -> np.ndarray:
    return processor(image, return_tensors="np")["pixel_values"][0]


def clip(side=28, crop=28) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": crop, "width": crop})


def siglip(side=28) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": side, "width": side})


def dinov2() -> BitImageProcessorPil:
    return BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


@pytest.mark.parametrize("size", SIZES)
def test_square_and_pad_equal_the_originals_arithmetic(size):
    image = noise(*size)  # noise, so that a pixel's shift or rounding shows
    square, pad = image_processor_for(clip(), "square"), image_processor_for(clip(), "pad")
    # Equal bit for bit, not only to a rounding.
    np.testing.assert_array_equal(pixel_values(square, image), original_clip(image, 28, 28))
    np.testing.assert_array_equal(pixel_values(pad, image), original_clip(original_pad(image, CLIP_MEAN), 28, 28))
    assert pixel_values(pad, image).dtype == np.float32
    assert pixel_values(pad, image).shape == (3, 28, 28)


def test_pad_at_the_size_of_llava_15():
    tower = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    image = noise(640, 427)
    found = pixel_values(image_processor_for(tower, "pad"), image)
    np.testing.assert_array_equal(found, original_clip(original_pad(image, CLIP_MEAN), 336, 336))
    padding = np.array([122, 116, 104]) / 255
    np.testing.assert_allclose(found[:, 0, 0], (padding - CLIP_MEAN) / CLIP_STD, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_pad_works_for_towers_without_a_crop(size):
    image = noise(*size)
    half = (0.5, 0.5, 0.5)
    squared = original_pad(image, half)
    assert squared.size[0] == max(size)
    pad = image_processor_for(siglip(), "pad")
    np.testing.assert_array_equal(pixel_values(pad, image), original_clip(squared, 28, 28, half, half))
    np.testing.assert_array_equal(pixel_values(pad, image), pixel_values(siglip(), squared))


def test_pad_keeps_a_tower_that_resizes_to_more_than_it_crops():
    image = noise(60, 40)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pad = image_processor_for(dinov2(), "pad")
    np.testing.assert_array_equal(
        pixel_values(pad, image), original_clip(original_pad(image, mean), 32, 28, mean, std)
    )


def test_square_is_the_towers_own_processor():
    for tower in (clip(), siglip(), dinov2()):
        assert image_processor_for(tower, "square") is tower


def test_pad_carries_what_the_tower_was_told():
    tower = clip()
    tower.resample, tower.do_normalize, tower.rescale_factor = 2, False, 1 / 127.5
    before = tower.to_dict()
    pad = image_processor_for(tower, "pad")
    assert type(pad) is LlavaImageProcessorPil
    assert pad.to_dict() == before | {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    assert tower.to_dict() == before
    assert image_processor_for(pad, "pad").to_dict() == pad.to_dict()
    assert image_processor_for(siglip(), "pad").do_center_crop is False


@pytest.mark.parametrize("make_tower", [clip, siglip, dinov2])
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_every_image_comes_out_at_the_stated_side(make_tower, aspect):
    processor = image_processor_for(make_tower(), aspect)
    assert image_side(processor) == (28, 28)
    for size in ((60, 40), (3, 50)):
        assert pixel_values(processor, noise(*size)).shape == (3, 28, 28)


def test_the_stated_side_is_height_then_width():
    assert image_side(CLIPImageProcessorPil(crop_size={"height": 20, "width": 30})) == (20, 30)
    assert image_side(SiglipImageProcessorPil(size={"height": 20, "width": 30})) == (20, 30)


def test_towers_that_cannot_have_the_aspect_are_refused():
    def refused_tower(tower, *parts, aspect="pad"):
        with pytest.raises(ValueError) as caught:
            image_processor_for(tower, aspect)
        for part in parts:
            assert part in str(caught.value)

    oblong = CLIPImageProcessorPil(crop_size={"height": 20, "width": 30})
    for aspect in ("square", "pad"):
        refused_tower(oblong, "`CLIPImageProcessorPil` gives images of 20 x 30", "wanted a square", aspect=aspect)
        no_crop = CLIPImageProcessorPil(do_center_crop=False)
        refused_tower(
            no_crop, "no fixed size", "'size': {'shortest_edge': 224}", "'do_center_crop': False", aspect=aspect
        )
        refused_tower(ConvNextImageProcessorPil(), "no fixed size", "{'shortest_edge': 384}", aspect=aspect)
        refused_tower(SiglipImageProcessorPil(do_resize=False), "no fixed size", "'do_resize': False", aspect=aspect)
    refused_tower(EfficientNetImageProcessorPil(), "does more than resize, crop, rescale and normalize")
    one_mean = clip()
    one_mean.image_mean = 0.5
    refused_tower(one_mean, "`image_mean` 0.5; wanted three numbers")
    refused_tower(clip(), "Aspect `anyres` is not known; wanted `square` or `pad`", aspect="anyres")
    refused_tower(image_processor_for(clip(), "pad"), "has `do_pad` set", aspect="square")


def stock_processor(image_processor) -> LlavaProcessor:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "<image>": 1, "what": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("make_tower", [clip, siglip, dinov2])
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_a_stock_processor_saves_and_loads_it(make_tower, aspect, tmp_path):
    image_processor = image_processor_for(make_tower(), aspect)
    stock_processor(image_processor).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    # Without its suffix: each backend's Auto class finds its own by this name.
    assert saved["image_processor_type"] + "Pil" == type(image_processor).__name__

    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is LlavaProcessor
    image = noise(60, 40)
    for loaded in (
        processor.image_processor,
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
    ):
        assert type(loaded) is type(image_processor)
        assert loaded.to_dict() == image_processor.to_dict()
        np.testing.assert_array_equal(pixel_values(loaded, image), pixel_values(image_processor, image))
    inputs = processor(images=image, text="what <image>")
    assert inputs["input_ids"] == [[2, 1, 1, 1, 1]]
    if (
        aspect == "pad"
    ):  # what vLLM and others count tokens with; of SigLIP's own processor stock LLaVA finds no crop size
        assert processor._get_num_multimodal_tokens([(40, 60)])["num_image_tokens"] == [4]
