"""Every picture comes in with its colours, the right way up, and as its first frame; the caller's stays as it was."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from processing.images import open_image
from tests.pictures import assert_same_picture, blocks, encoded, pixels, png, refused


pytestmark = pytest.mark.filterwarnings("error")  # whatever Pillow warns of is ours to settle


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
