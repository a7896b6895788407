"""Every mode and format comes out as upright RGB; every unusable file gets one sentence."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt.data.image import MAX_PIXELS, BadImage, open_image

MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
DEEP_MODES = ["I", "F", "I;16", "I;16L", "I;16B"]
RED = (255, 0, 0)
WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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


@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "AVIF"]))
@settings(max_examples=150)
def test_damaged_bytes_decode_or_get_a_sentence(data, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    content = bytearray(encoded(Image.new("RGB", (12, 9), RED), kind, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    try:
        image = open_image(bytes(content))
    except BadImage:
        return
    assert image.mode == "RGB"
