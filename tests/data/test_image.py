"""Every mode and format comes out as upright RGB; every unusable file gets one sentence."""

import builtins
import ctypes
import io
import os
import struct
import subprocess
import threading
import time
import warnings
import zlib
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from cvt.data import SUFFIXES, BadImage, find_images, open_image, opened
from cvt.data import image as image_module
from cvt.data.formats import FORMATS, MAX_SCANS, format_of, looks_like_image
from cvt.data.image import MAX_PIXELS, MOST_BYTES_PER_PIXEL, sized
from cvt.data.transforms import Covering, Croppable, Shrunk, Squashed

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
]
DEEP_MODES = ["I", "F", "I;16", "I;16L", "I;16B"]
RED = (255, 0, 0)
WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(width: int, height: int, pixels: bytes, tags: dict[int, int] | None = None) -> bytes:
    """A grey TIFF of one strip, by hand."""
    said = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height}
    said |= {279: len(pixels), **(tags or {})}
    said[273] = 8 + 2 + 12 * len(said) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(said.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(rows) + bytes(4) + pixels


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(*chunks: bytes) -> bytes:
    """A good PNG of 6 x 4 pixels with more chunks behind its header."""
    png = encoded(Image.new("RGB", (6, 4), RED), "PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def huge_png(width: int, height: int) -> bytes:
    """A PNG that only says how large it is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"


@given(mode=st.sampled_from(MODES + DEEP_MODES), width=st.integers(1, 9), height=st.integers(1, 9))
def test_any_mode_and_size_becomes_rgb(mode, width, height):
    image = open_image(Image.new(mode, (width, height)))
    assert (image.mode, image.size) == ("RGB", (width, height))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA"])
def test_lossless_formats_keep_the_pixels(kind, tmp_path):
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    path = tmp_path / f"picture.{kind.lower()}"
    options = {"lossless": True} if kind == "WEBP" else {}
    path.write_bytes(encoded(image, kind, **options))
    assert np.array_equal(open_image(path), image)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "AVIF"])
def test_lossy_formats_stay_close(kind):
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    got = np.asarray(open_image(encoded(image, kind)), dtype=int)
    assert np.abs(got - np.asarray(image, dtype=int)).max() <= 6


@pytest.mark.parametrize("make", [str, lambda path: path, lambda path: path.read_bytes()])
def test_path_and_bytes_give_the_same(make, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), RED).save(path)
    assert open_image(make(path)).getpixel((0, 0)) == RED


def test_open_files_and_pipes(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), RED).save(path)
    with open(path, "rb") as file:
        assert open_image(file).size == (3, 2)
    read, write = os.pipe()
    with os.fdopen(write, "wb") as file:
        file.write(path.read_bytes())
    with os.fdopen(read, "rb") as file:  # cannot be rewound
        assert open_image(file).size == (3, 2)


def test_other_kinds_of_bytes_and_a_file_open_as_text(tmp_path):
    content = examples()["PNG"]
    assert open_image(bytearray(content)).size == open_image(memoryview(content)).size == (12, 9)
    (tmp_path / "a.jpg").write_text("P3")
    with open(tmp_path / "a.jpg") as file, pytest.raises(BadImage, match="open as text"):
        open_image(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, noise):
    upright = Image.fromarray(noise(5, 7, 3))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation -> inverse transposition
    inverse = {0: 0, 1: 1, 2: 4, 3: 3, 4: 2, 5: 5, 6: 6}
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Image.Transpose(inverse[undo[orientation]]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = open_image(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(got, upright)


def test_a_phone_photo_held_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).size == (20, 40)


def test_transparent_parts_become_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    got = open_image(encoded(image, "PNG"))
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_half_transparent_red_on_white():
    image = open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))
    assert image.getpixel((0, 0)) == (255, 127, 127)


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        got = open_image(encoded(image, "PNG", transparency=transparency))
        assert [got.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


@pytest.mark.parametrize(("mode", "key"), [("RGB", RED), ("L", 7), ("1", 0)])
def test_a_transparent_colour_key(mode, key):
    got = open_image(encoded(Image.new(mode, (1, 1), key), "PNG", transparency=key))
    assert got.getpixel((0, 0)) == WHITE


def test_cmyk_jpeg():
    cyan = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG")
    assert np.allclose(np.asarray(open_image(cyan), dtype=int), (0, 255, 255), atol=3)


def test_one_bit():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    got = open_image(encoded(image, "PNG"))
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    grey = np.array([[0, 257, 257 * 100, 65535]], dtype=np.uint16)
    got = np.asarray(open_image(encoded(Image.fromarray(grey), kind)))
    assert got[0, :, 0].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize("values", [[-1.0, 0.0, 1.0], [0.0, 500.0, 1000.0], [0.0, 0.5, 1.0]])
def test_floats_run_from_lowest_to_highest(values):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert np.asarray(open_image(encoded(image, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_in_16_bits_has_the_depth_that_holds_its_values(bits, kind):
    largest = 2**bits - 1
    grey = np.array([[0, largest // 2, largest]], dtype=np.uint16)
    got = np.asarray(open_image(encoded(Image.fromarray(grey), kind)))[0, :, 0]
    assert got.tolist() == [0, round(largest // 2 * 255 / largest), 255]


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits for each of (height, width, 3 or 4) values; Pillow writes none."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def deep_tiff(values: np.ndarray, order: str, *, is_packed: bool) -> bytes:
    """A TIFF of 16 bits for each of (height, width, 3) values, in an order of bytes."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    data = values.astype(order + "u2").tobytes()
    data = zlib.compress(data) if is_packed else data
    said = {256: values.shape[1], 257: values.shape[0], 258: 0, 262: 2, 273: 0, 277: 3}
    said |= {259: 8 if is_packed else 1, 278: values.shape[0], 279: len(data)}
    end = 8 + 2 + 12 * len(said) + 4
    said |= {258: end, 273: end + 6}
    rows = [
        struct.pack(order + "HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
        for tag, value in sorted(said.items())
    ]
    head = mark + struct.pack(order + "IH", 8, len(rows)) + b"".join(rows) + bytes(4)
    return head + struct.pack(order + "3H", 16, 16, 16) + data


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("make", ["png", "<", ">", "< packed", "> packed"])
def test_colour_in_16_bits_has_the_depth_that_holds_its_values(bits, make):
    values = np.random.default_rng(bits).integers(0, 2**bits, (20, 30, 3))
    values[3, 4] = 2**bits - 1
    packed = make.endswith("packed")
    content = deep_png(values) if make == "png" else deep_tiff(values, make[0], is_packed=packed)
    got = np.asarray(open_image(content), int)
    # Without a stretch, Pillow cuts the lower byte off.
    expected = values * 255 / (2**bits - 1) if bits < 16 else values // 256
    assert np.abs(got - expected).max() <= 0.5
    assert got[3, 4].tolist() == [255] * 3


def test_dark_colour_of_16_bits_keeps_its_transparency():
    values = np.full((2, 2, 4), 700)
    values[..., 3] = [[65535, 0], [65535, 65535]]
    got = np.asarray(open_image(deep_png(values)))
    assert got[0].tolist() == [[round(700 * 255 / 1023)] * 3, [255] * 3]


def test_a_depth_that_the_file_states_is_followed():
    """Netpbm says the largest value, and TIFF may say 12 bits: dark images stay dark."""
    pgm = b"P5\n2 1\n4095\n" + struct.pack(">2H", 0, 700)
    assert open_image(pgm).getpixel((1, 0)) == (round(700 / 4095 * 255),) * 3
    packed = struct.pack(">I", 700)[1:]  # 0 and 700, in 12 bits each
    assert open_image(tiff(2, 1, packed, {258: 12})).getpixel((1, 0)) == (44,) * 3


@pytest.mark.parametrize("depth", [np.int32, np.uint32])
@pytest.mark.parametrize("largest", [245, 4095, 60_000])
def test_grey_in_32_bits_is_not_black(depth, largest):
    values = np.linspace(0, largest, 200).astype(depth)
    kind = {339: 2 if depth is np.int32 else 1, 258: 32}
    got = np.asarray(open_image(tiff(200, 1, values.tobytes(), kind)))[0, :, 0]
    assert got[-1] > 230
    assert len(np.unique(got)) > 180


def test_unsigned_integers_of_32_bits_do_not_turn_negative():
    values = np.array([0, 2**31, 2**32 - 1], np.uint32)
    got = np.asarray(open_image(tiff(3, 1, values.tobytes(), {258: 32})))
    assert got[0, :, 0].tolist() == [0, 128, 255]


def test_wide_integers_run_from_lowest_to_highest():
    image = Image.fromarray(np.array([[-100_000, 0, 100_000]], dtype=np.int32))
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_not_finite_are_black(value):
    image = Image.fromarray(np.array([[1.0, 3.0, value]], dtype=np.float32))
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [0, 255, 0]
    everywhere = Image.fromarray(np.full((2, 2), value, dtype=np.float32))
    assert not np.asarray(open_image(everywhere)).any()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, WHITE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == RED


def test_a_pillow_image_is_left_as_it_is():
    image = Image.new("L", (2, 2), 9)
    open_image(image)
    assert image.mode == "L"
    assert image.getpixel((0, 0)) == 9


def test_missing(tmp_path):
    with pytest.raises(BadImage, match=r"There is no file .*gone\.jpg"):
        open_image(tmp_path / "gone.jpg")


def test_folder(tmp_path):
    with pytest.raises(BadImage, match="Got the folder"):
        open_image(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    path = tmp_path / "locked.png"
    Image.new("RGB", (3, 2)).save(path)
    path.chmod(0)
    with pytest.raises(BadImage, match=r"Cannot read .*locked\.png: Permission denied"):
        open_image(path)


def test_zero_bytes(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(BadImage, match=r"empty\.jpg is empty \(0 bytes\)"):
        open_image(path)


def test_not_an_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("these are only notes")
    with pytest.raises(BadImage, match=r"notes\.jpg is not an image"):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated(kind, noise, tmp_path):
    path = tmp_path / "part"
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=r"part is (cut short or damaged|not an image)"):
        open_image(path)


def test_200_megapixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(20_000, 10_000))
    with pytest.raises(BadImage, match=r"huge\.png has more pixels than the limit of 179 megapix"):
        open_image(path)


def test_100_megapixels_raise_no_warning_of_pillows():
    with pytest.raises(BadImage, match="cut short"):  # it has no pixels, but nobody minds its size
        open_image(huge_png(10_000, 10_000))


def test_the_limit_holds_where_pillows_own_is_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="179 megapixels"):
        open_image(huge_png(MAX_PIXELS // 1000 + 1, 1000))


def test_a_thread_of_pixels_is_refused():
    with pytest.raises(BadImage, match="the image is 1 x 1001 pixels"):
        open_image(Image.new("L", (1, 1001)))
    assert open_image(Image.new("L", (1, 1000))).size == (1, 1000)


def test_the_given_name_is_used():
    with pytest.raises(BadImage, match=r"^train\.parquet row 12 is not an image"):
        open_image(b"x" * 100, name="train.parquet row 12")


def test_errors_are_single_sentences(tmp_path):
    for source in (b"", b"x" * 50, huge_png(3, 3), tmp_path):
        with pytest.raises(BadImage) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


# What formats are read.


@cache
def examples() -> dict[str, bytes]:
    """A small image in every format, and in the forms of it that are decoded differently."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    kinds = [each.name for each in FORMATS if each.name not in ("HEIF", "ICO")]
    found = {kind: encoded(rgb, kind) for kind in kinds}
    found |= {f"{kind} turned": encoded(rgb, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")}
    found["JPEG progressive"] = encoded(rgb, "JPEG", progressive=True)
    found["JPEG CMYK"] = encoded(rgb.convert("CMYK"), "JPEG")
    found["TIFF LZW"] = encoded(rgb, "TIFF", compression="tiff_lzw")
    found["TIFF deep"] = encoded(deep, "TIFF")
    found["PNG deep"] = encoded(deep, "PNG")
    found["PNG palette"] = encoded(rgb.quantize(7), "PNG", transparency=1)
    found["WEBP lossless"] = encoded(rgb, "WEBP", lossless=True)
    square = rgb.resize((16, 16))
    found["ICO"] = encoded(square, "ICO", sizes=[(16, 16)])
    found["ICO bitmap"] = encoded(square, "ICO", sizes=[(16, 16)], bitmap_format="bmp")
    found["TGA runs"] = encoded(rgb, "TGA", compression="tga_rle")
    found["PNG deep colour"] = deep_png(noise.astype(np.uint16) * 9)
    found["TIFF deep colour"] = deep_tiff(noise.astype(np.uint16) * 9, ">", is_packed=True)
    found["PPM text"] = b"P3\n2 1\n255\n255 0 0 1 2 3\n"
    if heif():
        found["HEIF"] = encoded(rgb, "HEIF", exif=exif)
    return found


def heif() -> bool:
    """Whether HEIC can be written and read."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def test_every_format_is_recognised_by_its_content():
    for kind, content in examples().items():
        expected = kind.split()[0]
        assert format_of(content) == (None if expected == "TGA" else expected), kind
        assert looks_like_image(content) == (expected != "TGA")
        assert open_image(content).mode == "RGB"


@pytest.mark.parametrize(
    "text", ["a.jpg\nb.jpg\n", "P5.jpg\nP6 1.jpg", "BMW/1.jpg", "GIF/a.gif", "II/*.tif", "MM.jpg"]
)
def test_file_names_do_not_look_like_images(text):
    assert not looks_like_image(text.encode())


@pytest.mark.parametrize(
    "content", [b"P3\n1 1\n255\n9 9 9\n", b"P2 # dark\n1 1\n255\n9\n", b"P5 2 2 255\n\1\2\3\4"]
)
def test_images_of_text_on_stdin_are_no_file_names(content):
    (found,) = find_images(["-"], io.BytesIO(content))
    assert open_image(found).mode == "RGB"


def test_what_is_written_in_another_format_is_refused(tmp_path):
    """EPS would start Ghostscript; Pillow reads these and some thirty more."""
    rgb = Image.new("RGB", (16, 16))
    for kind in ("EPS", "PCX", "PPM", "SGI", "DDS", "ICNS", "QOI"):
        path = tmp_path / f"{kind}.jpg"
        content = encoded(rgb, kind)
        path.write_bytes(b"%!PS-Adobe-3.0\n" + content if kind == "PPM" else content)
        with (
            patch.object(subprocess, "Popen", side_effect=AssertionError("a program is started")),
            pytest.raises(BadImage, match=r"\.jpg is not an image in a format that is read \(JPEG"),
        ):
            open_image(path)


def test_an_eps_image_that_pillow_opened_is_refused():
    lazy = EpsImagePlugin.EpsImageFile(io.BytesIO(encoded(Image.new("RGB", (16, 16)), "EPS")))
    with (
        patch.object(EpsImagePlugin, "Ghostscript", side_effect=AssertionError),
        pytest.raises(BadImage, match=r"the image is a EPS file that Pillow opened.*image\.copy"),
    ):
        open_image(lazy)


def test_a_damaged_image_that_pillow_opened_gets_a_sentence():
    cut = encoded(Image.effect_noise((64, 64), 90), "JPEG")[:-900]
    with pytest.raises(BadImage, match="the image is cut short"):
        open_image(Image.open(io.BytesIO(cut)))


def test_suffixes_are_those_of_the_formats():
    assert {".jpg", ".png", ".heic", ".mpo", ".pgm", ".tif", ".avif"} <= SUFFIXES
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf", ".fpx", ".mpg", ".icns"} & SUFFIXES


@pytest.mark.skipif(not heif(), reason="needs pillow-heif")
def test_heic_is_read_the_right_way_up():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.new("RGB", (64, 32), RED), "HEIF", exif=exif.tobytes())
    got = open_image(content)
    assert got.size == (32, 64)
    assert np.abs(np.asarray(got, int) - RED).max() <= 6


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **more):
        if name == "pillow_heif":
            raise ImportError(name)
        return imported(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(BadImage, match=r"IMG_1\.HEIC is HEIC, .*pip install 'cvt\[heif\]'"):
        open_image(b"\0\0\0\x18ftypheic" + bytes(200), name="IMG_1.HEIC")


def test_a_format_that_this_pillow_lacks_is_named(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    with pytest.raises(BadImage, match="is AVIF, which this Pillow does not read"):
        open_image(examples()["AVIF"])


# EXIF and its like, of which the orientation counts and nothing else.


def exif_block(*more: tuple[int, int, int, bytes], orientation: int = 6) -> bytes:
    """EXIF with an orientation and other tags: (tag, kind, count, the value's bytes)."""
    rows = sorted([*more, (0x0112, 3, 1, struct.pack("<H", orientation))])
    place, tail, out = 8 + 2 + 12 * len(rows) + 4, b"", struct.pack("<H", len(rows))
    for tag, kind, count, data in rows:
        value = data.ljust(4, b"\0")
        if len(data) > 4:
            value, tail = struct.pack("<I", place + len(tail)), tail + data
        out += struct.pack("<HHI", tag, kind, count) + value
    return b"II*\0" + struct.pack("<I", 8) + out + bytes(4) + tail


ODD_TAGS = {
    "resolution of -1/0": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "resolution in letters": (0x011A, 2, 7, b"72 dpi\0"),
    "unit in letters": (0x0128, 2, 3, b"cm\0"),
    "a place outside": (0x8825, 4, 1, struct.pack("<I", 10**6)),
    "a directory in itself": (0x8769, 4, 1, struct.pack("<I", 8)),
    "a value outside": (0x010E, 2, 10**8, struct.pack("<I", 10**8)),
    "an unknown kind": (0x010F, 77, 1, b"abc"),
    "a float as a text": (0x829A, 12, 1, b"not a number"),
}


@pytest.mark.parametrize("odd", ODD_TAGS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_with_odd_exif_are_turned_and_used(kind, odd):
    exif = exif_block(ODD_TAGS[odd])
    content = encoded(
        Image.new("RGB", (40, 20)), kind, exif=exif if kind == "PNG" else b"Exif\0\0" + exif
    )
    assert open_image(content).size == (20, 40)


@pytest.mark.parametrize("odd", ODD_TAGS)
def test_a_tiff_with_odd_tags_is_turned_and_used(odd):
    """In TIFF they stand beside what the decoder needs, which must not see them."""
    tag, kind, count, data = ODD_TAGS[odd]
    plain = tiff(4, 2, bytes(8), {274: 6, tag: 0})
    row = struct.pack("<HHI", tag, kind, count) + data[:4].ljust(4, b"\0")
    place = plain.index(struct.pack("<HHI", tag, 4, 1))
    assert open_image(plain[:place] + row + plain[place + 12 :]).size == (2, 4)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_odd_exif_does_not_matter_where_turning_is_said_elsewhere(kind):
    if kind == "HEIF" and not heif():
        pytest.skip("needs pillow-heif")
    exif = exif_block((0x011A, 10, 1, struct.pack("<ii", 72, 1)))
    content = encoded(Image.new("RGB", (40, 20)), kind, exif=b"Exif\0\0" + exif)
    assert content.count(b"Exif") >= 1
    odd = content
    for order in "<>":
        odd = odd.replace(struct.pack(order + "ii", 72, 1), struct.pack(order + "ii", -1, 0))
    assert odd != content
    assert open_image(odd).size == (20, 40)


@given(exif=st.binary(max_size=60), fields=st.integers(0, 70_000))
@settings(max_examples=60)
def test_exif_of_any_bytes_is_no_reason_to_refuse(exif, fields):
    for block in (exif, b"II*\0\x08\0\0\0" + struct.pack("<H", fields % 65_536) + exif):
        content = with_chunks(chunk(b"eXIf", block))
        assert sorted(open_image(content).size) == [4, 6]


def test_orientation_in_xmp_and_in_raw_profiles():
    said = b'<x tiff:Orientation="6"/>'
    digits = exif_block().hex().encode()
    raw = b"\nexif\n%8d\n%s\n" % (len(digits) // 2, digits)
    for content in (
        with_chunks(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + said)),
        with_chunks(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(said))),
        with_chunks(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))),
        with_chunks(chunk(b"tEXt", b"Raw profile type exif\0" + raw)),
        encoded(Image.new("RGB", (6, 4)), "JPEG", xmp=said),
        encoded(Image.new("RGB", (6, 4)), "WEBP", xmp=said),
    ):
        assert open_image(content).size == (4, 6)
    both = with_chunks(
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + said),
        chunk(b"eXIf", exif_block(orientation=1)),
    )
    assert open_image(both).size == (6, 4)  # EXIF counts more


@pytest.mark.parametrize("length", [2 << 20, 100 << 20])
def test_png_with_much_text_or_a_large_profile_is_good(length):
    """The longer one would be a bomb to who inflates it."""
    packed = zlib.compress(bytes(length))
    for extra in (
        chunk(b"zTXt", b"note\0\0" + packed),
        chunk(b"iTXt", b"note\0\1\0\0\0" + packed),
        chunk(b"iCCP", b"profile\0\0" + packed),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
    ):
        assert open_image(with_chunks(extra)).size == (6, 4)


def test_a_png_that_ends_within_its_text_is_cut_short():
    png = encoded(Image.new("RGB", (6, 4)), "PNG")
    cut = png[:-12] + chunk(b"tEXt", b"note\0" + bytes(500))[:100]
    with pytest.raises(BadImage, match="cut short"):
        open_image(cut)


def test_the_first_frame_of_gif_keeps_what_is_said_of_it():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    content = encoded(image, "GIF", transparency=1, comment=b"x" * 5000)
    assert [open_image(content).getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


# Small files that ask for much.


def progressive(scans: int) -> bytes:
    """A grey JPEG of 64 x 64 pixels that repeats one empty scan."""
    content = b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + b"\1" * 64
    content += b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, 64, 64, 1) + b"\1\x11\0"
    content += b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + bytes([1] + [0] * 15) + b"\x60"
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\1\0\1\x3f\0" + b"\x03"
    return content + scan * scans + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused_before_decoding():
    assert open_image(progressive(MAX_SCANS)).size == (64, 64)
    with (
        patch.object(ImageFile.ImageFile, "load", side_effect=AssertionError),
        pytest.raises(BadImage, match="in more than 100 scans, expected about ten"),
    ):
        open_image(progressive(5000))


def test_scans_of_thumbnails_and_further_frames_do_not_count():
    photo = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG", progressive=True)
    thumbnails = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
        for part in [b"thumb" + progressive(40)] * 9
    )
    assert open_image(photo[:2] + thumbnails + photo[2:] + progressive(500)).size == (64, 64)


def test_tags_that_claim_more_than_the_file_has_are_refused():
    content = tiff(2, 2, bytes(4), {320: 0})
    place = content.index(struct.pack("<HHI", 320, 4, 1))
    bomb = content[:place] + struct.pack("<HHII", 320, 3, 2**30, 8) + content[place + 12 :]
    with pytest.raises(BadImage, match="its tags claim more bytes than it has"):
        open_image(bomb)


def test_damage_that_pillow_logs_is_not_printed(capfd):
    bands = tiff(2, 2, bytes(4), {277: 0})
    place = bands.index(struct.pack("<HHI", 277, 4, 1))
    odd = bands[:place] + struct.pack("<HHII", 277, 3, 1, 273) + bands[place + 12 :]
    with pytest.raises(BadImage, match="it has 273 values for each pixel"):
        open_image(odd)
    with pytest.raises(BadImage, match="cut short or damaged"):
        open_image(bands[:place] + struct.pack("<HHII", 277, 12, 1, 8) + bands[place + 12 :])
    assert capfd.readouterr().err == ""


def test_parts_of_a_tiff_are_held_against_its_size():
    content = tiff(2, 2, bytes(5000), {279: 4})
    place = content.index(struct.pack("<HHI", 273, 4, 1))
    many = content[:place] + struct.pack("<HHII", 273, 4, 1000, 200) + content[place + 12 :]
    with pytest.raises(BadImage, match="2 x 2 pixels in 1000 parts, expected 2 at most"):
        open_image(many)
    with pytest.raises(BadImage, match="in tiles of 32768 x 32768, expected tiles of 17 megapix"):
        open_image(tiff(2, 2, bytes(4), {322: 2**15, 323: 2**15, 324: 200, 325: 4}))


HONEST = [
    {},
    {"tile_size": (128, 128)},
    {"precinct_size": (128, 128)},
    {"codeblock_size": (16, 16)},
    {"num_resolutions": 1},
    {"quality_layers": [30, 20, 10]},
]


@pytest.mark.parametrize("is_bare", [False, True])
@pytest.mark.parametrize("options", HONEST, ids=str)
def test_jpeg_2000_of_usual_kinds_is_read(options, is_bare):
    image = Image.new("RGB", (300, 200), RED)
    assert open_image(encoded(image, "JPEG2000", no_jp2=is_bare, **options)).size == (300, 200)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"codeblock_size": (4, 4)}, r"in \d+ blocks, expected blocks of 64 x 64"),
        ({"tile_size": (8, 8)}, "in 950 tiles, expected tiles of 64 x 64"),
    ],
    ids=["blocks", "tiles"],
)
def test_jpeg_2000_in_tiny_parts_is_refused(options, sentence):
    content = encoded(Image.new("RGB", (300, 200)), "JPEG2000", **options)
    with pytest.raises(BadImage, match=sentence):
        open_image(content)


def test_jpeg_2000_that_asks_for_much_in_its_header_is_refused():
    """192 bytes took 1,700 bytes for a pixel: blocks that lie together in areas of 2 x 2."""
    content = encoded(Image.new("RGB", (300, 200)), "JPEG2000", no_jp2=True)
    place = content.index(b"\xff\x52\0\x0c")

    def with_coding(style: int, layers: int, areas: bytes) -> bytes:
        body = struct.pack(">BBHBBBBBB", style, 0, layers, 1, 5, 4, 4, 0, 1) + areas
        head = b"\xff\x52" + struct.pack(">H", len(body) + 2)
        return content[:place] + head + body + content[place + 14 :]

    assert open_image(with_coding(1, 1, b"\x88" * 6)).size == (300, 200)
    with pytest.raises(BadImage, match="blocks, expected blocks of 64 x 64"):
        open_image(with_coding(1, 1, b"\x11" * 6))
    with pytest.raises(BadImage, match="in 65535 layers, expected 100 at most"):
        open_image(with_coding(0, 65535, b""))


def test_an_icon_with_a_large_image_in_it_is_held_to_the_limit():
    png = huge_png(20_000, 10_000)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(png), 22)
    with pytest.raises(BadImage, match="179 megapixels"):
        open_image(icon + png)


@pytest.mark.parametrize("error", [ZeroDivisionError, AssertionError, KeyError, RecursionError])
def test_whatever_a_decoder_raises_becomes_a_sentence(error):
    with (
        patch.object(PngImagePlugin.PngImageFile, "load", side_effect=error("odd")),
        pytest.raises(BadImage, match="the image is cut short or damaged"),
    ):
        open_image(examples()["PNG"])


def test_running_out_of_memory_is_called_that():
    with (
        patch.object(PngImagePlugin.PngImageFile, "load", side_effect=MemoryError),
        pytest.raises(BadImage, match="does not fit into the memory"),
    ):
        open_image(examples()["PNG"])


def test_a_file_over_the_limit_is_not_read_further(monkeypatch):
    monkeypatch.setattr(image_module, "MAX_BYTES", 100)
    with pytest.raises(BadImage, match="is larger than the limit"):
        open_image("/dev/zero")


def bytes_taken(content: bytes) -> int:
    """Memory that this process takes more, at the peak, while it opens an image."""

    def memory(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    open_image(content)
    return memory("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_memory_is_a_stated_multiple_of_the_pixels():
    coarse = np.random.default_rng(0).integers(0, 255, (40, 40, 4), dtype=np.uint8)
    rgba = Image.fromarray(coarse).resize((1500, 1500), Image.Resampling.NEAREST)
    deep = Image.fromarray(np.asarray(rgba.convert("L")).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    taken = {}
    for name, image, kind, options in (
        ("progressive", rgba.convert("RGB"), "JPEG", {"progressive": True, "subsampling": 0}),
        ("CMYK", rgba.convert("CMYK"), "JPEG", {"progressive": True}),
        ("transparent", rgba, "PNG", {"compress_level": 1}),
        ("sideways", deep, "PNG", {"exif": turned, "compress_level": 1}),
        ("floats", deep.convert("F"), "TIFF", {}),
        ("JPEG 2000", rgba, "JPEG2000", {}),
        ("WebP", rgba, "WEBP", {"method": 0}),
        ("AVIF", rgba, "AVIF", {"speed": 10}),
    ):
        content = encoded(image, kind, **options)
        taken[name] = (bytes_taken(content) - 3 * len(content)) / 1500**2
    # It measures something: RGB takes 4, a little of which may lie in memory that was there before.
    assert taken["progressive"] > 3
    assert max(taken.values()) <= MOST_BYTES_PER_PIXEL, taken


def test_threads_open_no_more_at_a_time_than_one_image_may_have(monkeypatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    inside, most, lock = [], [], threading.Lock()

    def read(side):
        with opened(Image.new("L", (side, side))) as image:
            with lock:
                inside.append(image.width * image.height)
                most.append(sum(inside))
            time.sleep(0.002)
            with lock:
                inside.remove(image.width * image.height)

    threads = [threading.Thread(target=read, args=(side,)) for side in [10, 3, 7, 5, 10, 2] * 4]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=20)
    assert len(most) == len(threads)
    assert max(most) <= 100


def test_a_thread_does_not_wait_for_itself():
    large = Image.new("L", (10, 10))
    with patch.object(image_module, "MAX_PIXELS", 100), opened(large), opened(large) as inner:
        assert inner.size == (10, 10)


def test_threads_keep_pillow_quiet_and_leave_the_filters_as_they_were():
    """Each image makes Pillow warn; a filter that one thread takes away would let it through."""
    odd = tiff(3000, 3000, bytes(9_000_000), {262: 1})
    before = list(warnings.filters)
    errors = []

    def read():
        for _ in range(3):
            try:
                open_image(odd)
            except BadImage as error:
                errors.append(error)

    with patch.object(Image, "MAX_IMAGE_PIXELS", 8_000_000):
        threads = [threading.Thread(target=read) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert not errors
    assert list(warnings.filters) == before


# Damage of any kind.


@given(data=st.data(), kind=st.sampled_from(sorted(examples())))
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_decode_or_get_a_sentence(data, kind):
    content = bytearray(examples()[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are where it matters most.
        place = data.draw(
            st.integers(0, min(len(content), 120) - 1) | st.integers(0, len(content) - 1)
        )
        part = data.draw(st.binary(max_size=4) | st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f"]))
        content[place : place + data.draw(st.integers(0, 4))] = part
    try:
        image = open_image(bytes(content))
    except BadImage as bad:
        sentence = str(bad)
    else:
        assert image.mode == "RGB"
        return
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 400


# --- At the size in use: a large JPEG is decoded smaller, which nobody sees.


def waves(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Colours that rise and fall some times over the image, up to its edges."""
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    bands = [np.sin(9 * x + 5 * y), np.sin(7 * y - 11 * x), np.sin(23 * x * y + 1)]
    return Image.fromarray((127 * np.dstack(bands) + 128).astype(np.uint8)).convert(mode)


def levels_apart(one: Image.Image, other: Image.Image) -> np.ndarray:
    assert one.size == other.size
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other))


DRAFT = JpegImageFile.draft
SIZINGS = [
    Covering((32, 32), "bicubic"),
    Squashed((40, 24), "bilinear"),
    Croppable((24, 24), "bicubic", 0.35),
    Shrunk((24, 40), "lanczos"),
]


@pytest.mark.parametrize("sizing", SIZINGS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(sizing, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(waves(651, 517), "JPEG", quality=95, exif=exif)
    with patch.object(JpegImageFile, "draft", autospec=True, side_effect=DRAFT) as draft:
        small = open_image(content, sizing=sizing)
    assert max(draft.call_args[0][0].size) < 350
    apart = levels_apart(small, sized(open_image(content), sizing))
    assert apart.mean() < 0.7
    assert apart.max() <= 8


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_so_are_grey_and_cmyk(mode, progressive):
    content = encoded(waves(500, 401, mode), "JPEG", quality=95, progressive=progressive)
    apart = levels_apart(
        open_image(content, sizing=SIZINGS[0]), sized(open_image(content), SIZINGS[0])
    )
    assert 0 < apart.max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(127, 140), (127, 2000), (20, 30)])
def test_other_images_are_resized_from_all_their_pixels(kind, size):
    """JPEGs of less than twice two times the size in use, in either side, among them."""
    content = encoded(waves(*size), kind)
    for sizing in (SIZINGS[0], None):
        got = open_image(content, sizing=sizing)
        assert np.array_equal(got, sized(open_image(content), sizing))


def test_single_pixels_are_picked_from_all_of_them():
    content, sizing = encoded(waves(500, 400), "JPEG"), Covering((32, 32), "nearest")
    assert np.array_equal(open_image(content, sizing=sizing), sized(open_image(content), sizing))


def test_a_large_jpeg_that_ends_early_is_refused_at_any_size():
    content = encoded(waves(500, 400), "JPEG")
    with pytest.raises(BadImage, match="cut short or damaged"):
        open_image(content[: len(content) // 2], sizing=SIZINGS[0])


def test_an_image_that_pillow_has_open_is_not_made_smaller_for_others():
    with Image.open(io.BytesIO(encoded(waves(500, 400), "JPEG"))) as image:
        assert open_image(image, sizing=SIZINGS[0]).size == (40, 32)
        assert image.size == (500, 400)


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0.01, 1))
def test_the_smallest_crop_has_as_many_pixels_as_the_network_sees(width, height, smallest):
    small = Croppable((24, 32), "bicubic", smallest).of(width, height)
    assert small[0] <= width
    assert small[1] <= height
    if small != (width, height):
        assert min(small) >= 32
        assert small[0] * small[1] * smallest >= 24 * 32 - 1e-6
        # No more than that takes, but for parts of a pixel.
        assert small[0] * small[1] <= max(24 * 32 / smallest, 33 * max(small)) + sum(small)
        assert abs(small[0] * height - small[1] * width) <= max(width, height)
