"""Pictures come in complete, whatever they come from, or are refused by name."""

import base64
import io
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

from processing.images import FORMATS, MAX_PIXELS, ImageError, open_image
from tests.pictures import ALL_FORMATS, assert_same_picture, blocks, encoded, noise, pixels, png, refused


pytestmark = pytest.mark.filterwarnings("error")  # whatever Pillow warns of is ours to settle


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
    name = "`train2017/0001.jpg` of conversation `7`"
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
