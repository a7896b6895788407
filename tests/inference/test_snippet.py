"""The programs that export prints prepare images as the library does, to the bit."""

import json
import struct
import sys
import zlib
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

import cvt
from cvt.data import eval_transform, open_image
from cvt.inference.export import FORMATS, Metadata, choose_sizes, snippet
from cvt.weights.record import Preprocessing, Record


def made(preprocessing, batch_size=None, num_classes=4):
    """A snippet, with the metadata that it reads."""
    spec = cvt.create_model("cvt_nano_32", num_classes=num_classes, depth=1).spec
    spec = spec.change(in_chans=preprocessing.input_size[0])
    record = Record(model="cvt_nano_32", spec=spec, preprocessing=preprocessing)
    free = ("batch",) if batch_size is None else ()
    sizes = choose_sizes(spec, preprocessing.size, batch_size, free)
    return snippet("onnx", "some.onnx", Metadata(record, sizes, "float32")), record


def prepared(source, record, image_path):
    """What the snippet's own lines make of an image."""
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("about ="))
    end = next(i for i, line in enumerate(lines) if line.startswith("images = np.asc"))
    names = {"record": json.loads(json.dumps(record.to_dict())), "np": np, "sys": sys}
    head = "from PIL import Image\n"
    with patch.object(sys, "argv", ["use.py", str(image_path)]):
        exec(head + "\n".join(lines[start : end + 1]), names)
    return names["images"]


@settings(max_examples=40)
@given(
    image=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)) | st.sampled_from([(32, 32), (17, 17)]),
    crop_pct=st.sampled_from([1.0, 0.875, 0.9, 0.95]),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    channels=st.sampled_from([1, 3]),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_images_are_prepared_alike(
    tmp_path_factory, image, size, crop_pct, crop_mode, interpolation, channels, mode
):
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.effect_noise(image, 90).convert(mode if mode == "L" else "RGB").save(path)
    preprocessing = Preprocessing(
        input_size=(channels, *size),
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
    )
    expected = eval_transform(preprocessing)(open_image(path)).numpy()
    got = prepared(*made(preprocessing), path)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], expected)


def test_an_image_on_its_side_is_turned(tmp_path):
    noise = Image.effect_noise((30, 20), 90).convert("RGB")
    exif = noise.getexif()
    exif[274] = 6
    noise.save(tmp_path / "turned.png", exif=exif)
    preprocessing = Preprocessing(input_size=(3, 16, 16))
    got = prepared(*made(preprocessing), tmp_path / "turned.png")
    expected = eval_transform(preprocessing)(open_image(tmp_path / "turned.png")).numpy()
    np.testing.assert_array_equal(got[0], expected)


def tiff(values, **tags):
    """A grey TIFF by hand, in which whole numbers need not be of 16 bits; tags as t258=12."""
    height, width = values.shape
    said = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 0, 277: 1}
    said |= {278: height, 279: values.nbytes, **{int(tag[1:]): n for tag, n in tags.items()}}
    said[273] = 8 + 2 + 12 * len(said) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(said.items())]
    head = b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(rows) + bytes(4)
    return head + values.tobytes()


def odd_images():
    """Images (name, mode or kind, bytes) that a plain `convert("RGB")` gets wrong."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    rgba, grey = Image.fromarray(colour), colour[:, :, 0]
    exif = Image.Exif()
    exif[274] = 6
    palette = rgba.convert("RGB").quantize(16)
    scans = {bits: grey.astype(np.uint16) << bits - 8 for bits in (8, 10, 12, 14, 16)}
    dark = scans[12] >> 2
    yield from ((f"{mode}.png", rgba.convert(mode), {}) for mode in ("RGBA", "LA", "L", "1"))
    yield "palette.png", palette, {"transparency": 3}
    yield "alphas.png", palette, {"transparency": bytes(range(0, 256, 16))}
    yield "key.png", rgba.convert("RGB"), {"transparency": tuple(map(int, colour[0, 0, :3]))}
    yield "cmyk.jpg", rgba.convert("CMYK"), {}
    yield from ((f"turned.{kind}", rgba.convert("RGB"), {"exif": exif}) for kind in ("png", "jpg"))
    yield "turned.tif", rgba, {"exif": exif}
    yield "turned.webp", rgba, {"exif": exif, "lossless": True}
    for bits, values in scans.items():
        yield f"{bits}.png", Image.fromarray(values), {"exif": exif}
        yield f"{bits}.tif", Image.fromarray(values), {}
    yield "dark.pgm", Image.fromarray(dark), {}
    yield "stated.pgm", b"P5\n40 30\n4095\n" + dark.astype(">u2").tobytes(), {}
    yield "dark.jp2", Image.fromarray(dark), {}
    yield "wide.tif", Image.fromarray(dark.astype(np.int32) * 100_000 - 70), {}
    yield "floats.tif", Image.fromarray(dark / np.float32(77)), {}
    yield "nan.tif", Image.fromarray(np.where(dark > 900, np.nan, dark).astype(np.float32)), {}
    yield "unsigned.tif", tiff(grey.astype(np.uint32) << 24), {}
    yield "integers.tif", tiff(grey.astype(np.int32), t339=2), {}
    yield "packed.tif", tiff(grey, t256=20, t279=900, t258=12), {}


ODD = list(odd_images())


@pytest.mark.parametrize(("name", "image", "options"), ODD, ids=[name for name, _, _ in ODD])
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_images_are_prepared_alike(tmp_path, name, image, options, channels):
    path = tmp_path / name
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path, **options)
    preprocessing = Preprocessing(
        input_size=(channels, 16, 16), mean=(0.5,) * channels, std=(0.25,) * channels
    )
    expected = eval_transform(preprocessing)(open_image(path)).numpy()
    assert expected.std() > 0.05  # something is to be seen
    np.testing.assert_array_equal(prepared(*made(preprocessing), path)[0], expected)


def deep_png(path, largest):
    """A PNG of 16 bits for each colour."""
    values = np.linspace(0, largest, 20 * 20 * 3).astype(">u2").reshape(20, 60)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def test_colour_of_16_bits_is_prepared_alike_or_refused(tmp_path):
    preprocessing = Preprocessing(input_size=(3, 16, 16))
    deep_png(tmp_path / "full.png", 65535)
    expected = eval_transform(preprocessing)(open_image(tmp_path / "full.png")).numpy()
    got = prepared(*made(preprocessing), tmp_path / "full.png")
    np.testing.assert_array_equal(got[0], expected)
    deep_png(tmp_path / "dark.png", 4095)
    with pytest.raises(SystemExit, match="14 bits or fewer of colour"):
        prepared(*made(preprocessing), tmp_path / "dark.png")


def test_the_program_opens_no_other_formats(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (16, 16)).save(path, "EPS")
    with (
        patch("PIL.EpsImagePlugin.Ghostscript", side_effect=AssertionError),
        pytest.raises(UnidentifiedImageError),
    ):
        prepared(*made(Preprocessing(input_size=(3, 16, 16))), path)


def test_other_channels_fixed_batches_and_no_classes():
    four = Preprocessing(input_size=(4, 32, 32), mean=(0.5,) * 4, std=(0.5,) * 4)
    source, _ = made(four, batch_size=5, num_classes=0)
    compile(source, "use.py", "exec")
    assert "Image" not in source
    assert "np.repeat(images, 5, axis=0)" in source
    assert source.endswith("print(output.shape)\n")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_one_that_says_what_it_takes(name, tmp_path):
    _, record = made(Preprocessing(input_size=(3, 32, 32)))
    sizes = choose_sizes(record.spec, (32, 32), None, ("batch", "height", "width"))
    path = tmp_path / 'a "name".bin'
    source = snippet(name, path, Metadata(record, sizes, "float32"), "cuda:1")
    compile(source, "use.py", "exec")
    assert "height from 17, width from 17" in source.splitlines()[1]
    assert ('.to("cuda:1")' in source) == (name in ("program", "aot"))
