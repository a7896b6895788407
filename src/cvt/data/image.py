"""One picture from anything Pillow can open to upright 8-bit RGB, or one sentence why not."""

import os
import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvt.data.formats import FORMATS
from cvt.errors import UserError

# Twice Pillow's `MAX_IMAGE_PIXELS`: the size from which Pillow itself refuses, half a gigabyte
# of RGB.
MAX_PIXELS = 178_956_970

# Resizing a picture's short side to 256 pixels makes its long side 256 times this at most.
MAX_ASPECT = 1000

# What Pillow's decoders raise on damaged data (OSError includes UnidentifiedImageError).
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)


class BadImage(UserError):
    """A picture that cannot be used; among many others it can be named, skipped and counted."""


def open_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image, *, name: str | None = None
) -> Image.Image:
    """Reads a picture as 8-bit RGB, the way up that its EXIF orientation says.

    Animations and multi-page files give their first frame. Transparent parts become white. Grey
    of 16 bits keeps its full range (65535 becomes 255); integers beyond 16 bits and floats, which
    have no range of their own, run from the picture's lowest value to its highest. CMYK is
    converted without its colour profile.

    Args:
        source: A path, the bytes of a file, an open binary file, or a Pillow image.
        name: What an error calls the picture; its path, or "the image", where it is not given.

    Raises:
        BadImage: The file is missing, a folder, unreadable, empty, not an image, damaged, of more
            than `MAX_PIXELS` (seen before decoding), or over `MAX_ASPECT` times as long as wide.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = name or str(path)
        with _open_file(path, name) as file:
            return _decode(file, name)
    name = name or "the image"
    if isinstance(source, Image.Image):
        return _upright_rgb(source, name)
    return _decode(BytesIO(source) if isinstance(source, bytes) else source, name)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise BadImage(f"There is no file {name}; check the path.") from None
    except IsADirectoryError:
        raise BadImage(f"Got the folder {name}, expected an image file.") from None
    except OSError as error:
        raise BadImage(f"Cannot read {name}: {error.strerror or error}.") from error


def _decode(file: BinaryIO, name: str) -> Image.Image:
    if not file.seekable():
        file = BytesIO(file.read())
    file.seek(0)
    if not file.read(1):
        raise BadImage(f"{name} is empty (0 bytes), expected an image; fetch it again.")
    with _quiet_pillow():
        try:
            Image.init()
            known = [each.name for each in FORMATS if each.name in Image.OPEN]
            with Image.open(file, formats=known) as image:
                return _upright_rgb(image, name)
        except UnidentifiedImageError:
            raise BadImage(
                f"{name} is not an image in a format that Pillow can read; "
                "convert it to JPEG or PNG, or leave it out."
            ) from None
        except Image.DecompressionBombError:
            raise _too_large(name) from None
        except BadImage:
            raise
        except _DECODE_ERRORS as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise BadImage(f"{name} is cut short or damaged ({reason}); fetch it again.") from error


@contextmanager
def _quiet_pillow() -> Generator[None]:
    """Silences Pillow's warnings alone: a file either decodes or is refused by a sentence.

    `catch_warnings` is not safe among threads, so the filters must be harmless if one leaks.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _too_large(name: str) -> BadImage:
    return BadImage(
        f"{name} has more pixels than the limit of {MAX_PIXELS / 1e6:.0f} megapixels; "
        "scale it down first."
    )


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name)
    if not 0 < max(image.size) <= MAX_ASPECT * min(image.size):
        raise BadImage(
            f"{name} is {width} x {height} pixels, expected the long side to be at most "
            f"{MAX_ASPECT} times the short one; cut it into pieces."
        )
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
            image = image.convert("LA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales a grey picture of 16 or more bits to 0..255; values that are not finite become 0."""
    values = np.asarray(image).astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    values = np.where(finite, values - low, 0.0) * (255 / (high - low or 1))
    return Image.fromarray(np.round(values).astype(np.uint8))
