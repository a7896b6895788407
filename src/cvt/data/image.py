"""Opens one image as upright 8-bit RGB, or says in one sentence why it cannot be used."""

import logging
import os
import struct
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cvt.data.formats import FORMATS, Excess, bare, format_of, stated_orientation
from cvt.errors import UserError
from cvt.files import url_in

MAX_PIXELS = 178_956_970
"""Twice Pillow's `MAX_IMAGE_PIXELS`, where Pillow itself refuses; half a gigabyte of RGB."""

MAX_BYTES = 6 * MAX_PIXELS
"""Size of a file, 1 GiB: that many pixels of uncompressed 16-bit colour."""

MAX_ASPECT = 1000
"""Long side over short side; a short side resized to 256 pixels makes the long one 256,000."""

MOST_BYTES_PER_PIXEL = 40
"""Peak memory for opening an image, beside three times the size of its file.

JPEG 2000 with transparency takes the most; JPEG and PNG take a quarter of it."""

DRAFT_MARGIN = 3
"""How many times its size in use a JPEG is decoded at, at least.

Of 108 photographs of 500 pixels, used at 32, three times changes pixels by 0.2 levels on average
and no answer of the demo's; twice, by 0.4 and one answer. The time is nearly the same.
"""

_SMALL = 128  # images of fewer than MAX_PIXELS / 128 pixels never wait for a turn
_BAND = 1 << 20  # pixels converted at a time where each takes many bytes

_DEPTHS = (8, 10, 12, 14, 16)
_DARK = 1 << 14 - 8  # the upper bytes of 14-bit values are below it
_OTHER_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}

# What undoes each EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PILLOW_NAMES = {*(each.name for each in FORMATS), "MPO", "DIB"}
_SIDEWAYS = {_TURNS[each] for each in (5, 6, 7, 8)}

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image


class BadImage(UserError):
    """An image that cannot be used; among many, it is named, skipped and counted."""


@dataclass(frozen=True)
class Sizing(ABC):
    """The size at which images are used, as plain data.

    Args:
        size: Height and width that the network sees, or those around its crop.
        interpolation: bicubic, bilinear, lanczos or nearest, as Pillow computes them.
    """

    size: tuple[int, int]
    interpolation: str

    @abstractmethod
    def of(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height in use of an image of these."""

    @property
    def filter(self) -> Image.Resampling:
        """Pillow's name for the interpolation."""
        return Image.Resampling[self.interpolation.upper()]


def sized(image: Image.Image, sizing: Sizing | None) -> Image.Image:
    """Returns an image at the size in which it is used; None leaves it as it is."""
    size = sizing.of(*image.size) if sizing else image.size
    return image if sizing is None or size == image.size else image.resize(size, sizing.filter)


def open_image(
    source: ImageSource, *, name: str | None = None, sizing: Sizing | None = None
) -> Image.Image:
    """Reads an image as 8-bit RGB, turned upright by its EXIF orientation.

    The formats are those of `cvt.data.formats`, whatever the file is called; HEIC needs
    pillow-heif. Animations and multi-page files give their first frame. Transparency becomes
    white. CMYK is converted without its colour profile.

    Grey and colour of more than 8 bits are scaled so that 0 stays black and the largest value of
    their depth becomes 255. A PGM's stated maximum and a TIFF's 12 bits are taken as the depth.
    Scanners and cameras of 10 to 14 bits write 16 and 32 bits as well; there the depth is the
    smallest of 8, 10, 12, 14 and 16 bits that holds the image's largest value. Negative integers,
    those beyond 16 bits, and floats have no depth: they are scaled from the image's lowest value
    to its highest.

    Args:
        source: A path, the bytes of a file, an open binary file, or a Pillow image.
        name: What an error calls the image; by default its path, or "the image".
        sizing: The size to return it at; by default its own. A JPEG that is larger by far is
            decoded at a half, a quarter or an eighth, which takes a third of the time.
    """
    with opened(source, name=name, sizing=sizing) as image:
        return image


@contextmanager
def opened(
    source: ImageSource, *, name: str | None = None, sizing: Sizing | None = None
) -> Generator[Image.Image]:
    """Yields what `open_image` returns, and holds its turn until the block is left.

    The images of over 1.4 megapixels that a process opens at a time, in all its threads, have at
    most `MAX_PIXELS` together; the next one waits. So the threads take no more memory than a single
    image may (`MOST_BYTES_PER_PIXEL`), provided that the block makes it smaller.
    """
    with ExitStack() as turn:
        yield _read(source, name, turn, sizing)


def _read(
    source: ImageSource, name: str | None, turn: ExitStack, sizing: Sizing | None
) -> Image.Image:
    if isinstance(source, Image.Image):
        return sized(_from_pillow(source, name or "the image", turn), sizing)
    if isinstance(source, str | os.PathLike):
        name = name or str(source)
        with _open_file(Path(source), name) as file:
            content = _content(file, name)
    else:
        name = name or "the image"
        is_bytes = isinstance(source, bytes | bytearray | memoryview)
        content = bytes(source) if is_bytes else _content(source, name)
    if not content:
        raise BadImage(f"{name} is empty (0 bytes), expected an image; fetch it again.")
    if len(content) > MAX_BYTES:
        raise BadImage(
            f"{name} is larger than the limit of {MAX_BYTES / 2**30:.0f} GiB; scale it down first."
        )
    return _decoded(content, name, turn, sizing)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        if (url := url_in(name)) is not None:
            raise BadImage(
                f"Got the URL {url}, and nothing is fetched; download it and name the file."
            ) from None
        raise BadImage(f"There is no file {name}; check the path.") from None
    except IsADirectoryError:
        raise BadImage(f"Got the folder {name}, expected an image file.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise BadImage(f"Cannot read {name}: {_reason(error)}.") from error


def _content(file: BinaryIO, name: str) -> bytes:
    try:
        if file.seekable():
            file.seek(0)
        content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadImage(f"Cannot read {name}: {_reason(error)}.") from error
    if isinstance(content, str):
        raise BadImage(f"{name} is open as text, expected bytes; open it in mode 'rb'.")
    return content


def _reason(error: BaseException) -> str:
    if isinstance(error, struct.error):
        return "it ends too early"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.rstrip(".") or type(error).__name__


def _from_pillow(image: Image.Image, name: str, turn: ExitStack) -> Image.Image:
    """Takes an image that was opened with Pillow; it may not have been decoded yet."""
    if isinstance(image, ImageFile.ImageFile) and image.format not in _PILLOW_NAMES:
        raise BadImage(
            f"{name} is a {image.format} file that Pillow opened, expected one of {_listed()}; "
            "give a copy of its pixels, image.copy()."
        )
    with _damage_named(name), _quiet_pillow:
        _check_size(image, name)
        turn.enter_context(_turns.of(image.width * image.height))
        image.load()  # Pillow turns a TIFF while it loads it
        try:
            orientation = image.getexif().get(274)
        except Exception:  # of odd EXIF; an image is not worse for it
            orientation = _stated(image)
        return _upright_rgb(image, name, orientation)


def _stated(image: Image.Image) -> int | None:
    return stated_orientation(image.info.get("exif"), image.info.get("xmp"))


def _decoded(content: bytes, name: str, turn: ExitStack, sizing: Sizing | None) -> Image.Image:
    kind = format_of(content) or "TGA"
    _check_decoder(kind, name)
    with _damage_named(name), _quiet_pillow:
        content, orientation = bare(content, kind)
        kind = format_of(content) or kind  # an icon may hold a PNG
        try:
            image = Image.open(BytesIO(content), formats=[kind])
        except UnidentifiedImageError as error:
            if kind != "TGA":
                raise ValueError(f"it begins like {kind}, but does not go on so") from error
            raise BadImage(
                f"{name} is not an image in a format that is read ({_listed()}); "
                "convert it to JPEG or PNG, or leave it out."
            ) from None
        with image:
            _check_size(image, name)
            turn.enter_context(_turns.of(image.width * image.height))
            orientation = orientation or _stated(image)
            lower = _lower_bytes(image)
            if lower is None or not _is_dark(image):
                return _at_size(image, name, orientation, sizing)
            with Image.open(BytesIO(content), formats=[kind]) as other:
                other.tile = lower
                upright = _upright_rgb(_deep_colour(image, other), name, orientation)
                return sized(upright, sizing)


def _listed() -> str:
    *most, last = (each.name for each in FORMATS)
    return f"{', '.join(most)} and {last}"


def _check_decoder(kind: str, name: str) -> None:
    """Says what to install where this Pillow cannot read a format."""
    Image.init()
    if kind in Image.OPEN:
        return
    if kind == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            raise BadImage(
                f"{name} is HEIC, which needs pillow-heif; install it with: pip install "
                "'cvt[heif]', or convert it to JPEG."
            ) from None
        return pillow_heif.register_heif_opener(thumbnails=False)
    raise BadImage(
        f"{name} is {kind}, which this Pillow does not read; install a newer one with: "
        "pip install -U pillow, or convert it to JPEG."
    )


@contextmanager
def _damage_named(name: str) -> Generator[None]:
    """Turns whatever a decoder raises into a sentence about the file.

    The decoders of a dozen formats raise far more than they document (ZeroDivisionError,
    AssertionError, RecursionError, struct.error, ...), and all of it means that this file cannot
    be used. The cause stays attached.
    """
    try:
        yield
    except BadImage:
        raise
    except Excess as error:
        raise BadImage(f"{name} {error}.") from None
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except MemoryError as error:
        told = f"{name} does not fit into the memory that is left; scale it down first."
        raise BadImage(told) from error
    except Exception as error:
        told = f"{name} is cut short or damaged ({_reason(error)}); fetch it again."
        raise BadImage(told) from error


class _Quiet:
    """Silences Pillow's warnings alone: a file either decodes or is refused with a sentence.

    Python's filters belong to the whole process: the first thread in sets them, and the last one
    out restores them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
            self.inside += 1

    def __exit__(self, *error: Any) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.filters.__exit__(*error)


class _Turns:
    """Limits the images being opened at a time to `MAX_PIXELS` in all, first come, first served.

    A thread never waits for itself, and one image is always let in.
    """

    def __init__(self) -> None:
        self.door = threading.Lock()
        self.room = threading.Condition()
        self.pixels = 0
        self.thread = threading.local()

    @contextmanager
    def of(self, pixels: int) -> Generator[None]:
        """Waits until there is room for that many, and holds it for the length of the block."""
        if pixels * _SMALL < MAX_PIXELS or getattr(self.thread, "is_inside", False):
            yield
            return
        with self.door, self.room:
            self.room.wait_for(lambda: not self.pixels or self.pixels + pixels <= MAX_PIXELS)
            self.pixels += pixels
        self.thread.is_inside = True
        try:
            yield
        finally:
            self.thread.is_inside = False
            with self.room:
                self.pixels -= pixels
                self.room.notify_all()


_quiet_pillow, _turns = _Quiet(), _Turns()
# Python prints logged errors that have no handler, and Pillow logs some kinds of damage.
logging.getLogger("PIL").addHandler(logging.NullHandler())

if hasattr(os, "register_at_fork"):  # a loading process has none of its parent's threads
    os.register_at_fork(after_in_child=_quiet_pillow.__init__)
    os.register_at_fork(after_in_child=_turns.__init__)


def _too_large(name: str) -> BadImage:
    return BadImage(
        f"{name} has more pixels than the limit of {MAX_PIXELS / 1e6:.0f} megapixels; "
        "scale it down first."
    )


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name)
    if not 0 < max(image.size) <= MAX_ASPECT * min(image.size):
        raise BadImage(
            f"{name} is {width} x {height} pixels, expected the long side to be at most "
            f"{MAX_ASPECT} times the short one; cut it into pieces."
        )


def _at_size(
    image: Image.Image, name: str, orientation: int | None, sizing: Sizing | None
) -> Image.Image:
    """Decodes an image upright, and no more of a large JPEG's pixels than its size in use needs.

    The decoder rounds sizes up: its last column and row may stand for less than a whole pixel. So
    the box that the image fills is what is resized, lest everything moved by parts of a pixel.
    """
    turn = _TURNS.get(orientation or 1)
    is_sideways = turn in _SIDEWAYS
    if sizing is None or sizing.filter == Image.Resampling.NEAREST:
        return sized(_upright_rgb(image, name, orientation), sizing)
    size = _swapped(sizing.of(*_swapped(image.size, is_sideways)), is_sideways)
    box = _draft(image, size)
    if box is None:
        return sized(_upright_rgb(image, name, orientation), sizing)
    small = _upright_rgb(image, name, None).resize(size, sizing.filter, box)
    return small if turn is None else small.transpose(turn)


def _swapped(size: tuple[int, int], is_sideways: bool) -> tuple[int, int]:
    return size[::-1] if is_sideways else size


def _draft(image: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Has a JPEG decoded smaller where that leaves the margin; returns the box that it fills."""
    width, height = image.size
    most = min(width / size[0], height / size[1]) / DRAFT_MARGIN
    divisor = next((each for each in (8, 4, 2) if each <= most), None)
    drawn = divisor and image.draft(None, (width // divisor, height // divisor))
    return drawn[1] if drawn else None


def _upright_rgb(image: Image.Image, name: str, orientation: int | None) -> Image.Image:
    size, least = image.size, _stated_bits(image)
    image.load()
    if image.size != size:  # a file within the file may be larger than it says
        _check_size(image, name)
    rgb = _rgb(image, least)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _lower_bytes(image: ImageFile.ImageFile) -> list[Any] | None:
    """Returns tiles that decode the lower bytes of 16-bit colour, of which Pillow keeps the upper.

    Asked to read the file in the other byte order, it keeps the lower ones.
    """
    tiles = []
    for tile in image.tile:
        args = tile[3]
        rawmode, *rest = args if isinstance(args, tuple) else (args,)
        colours, _, order = str(rawmode).rpartition(";")
        if colours not in ("RGB", "RGBA", "RGBX") or order not in _OTHER_ORDER:
            return None
        other = f"{colours};{_OTHER_ORDER[order]}"
        args = (other, *rest) if isinstance(args, tuple) else other
        # Before Pillow 11 they were plain tuples.
        tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args))
    return tiles or None


def _is_dark(image: Image.Image) -> bool:
    """Whether its 16-bit colours would fit into 14 bits or fewer."""
    counts = image.histogram()
    return not any(any(counts[band + _DARK : band + 256]) for band in (0, 256, 512))


def _deep_colour(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Scales colour by the depth that holds its values, as grey is; transparency stays."""

    def values(box: tuple[int, int, int, int]) -> np.ndarray:
        high, low = (np.asarray(each.crop(box))[..., :3] for each in (upper, lower))
        return high.astype(np.float64) * 256 + low

    largest = _largest(max(float(values(box).max()) for box in _boxes(upper)), 8)
    scaled = upper.copy()
    for box in _boxes(upper):
        levels = np.asarray(upper.crop(box)).copy()
        levels[..., :3] = np.round(values(box) * (255 / largest))
        scaled.paste(Image.fromarray(levels), box)
    return scaled


def _stated_bits(image: Image.Image) -> int:
    """Returns the least depth of grey, as stated in the file; asked before the image is loaded."""
    decoders = [tile[0] for tile in getattr(image, "tile", [])]
    if image.format == "PPM" and decoders and decoders[0] != "raw":
        return 16  # to which Pillow scales it
    return 12 if image.format == "TIFF" and _tag(image, 258, 16) == 12 else 8


def _rgb(image: Image.Image, least: int) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        low, high = _range(image, least)
        return _in_bands(image, lambda band: _eight_bits(band, image, low, high))
    if image.has_transparency_data:
        return _in_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Converts a few rows at a time, so that only those take many bytes per pixel."""
    if image.width * image.height <= _BAND:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for box in _boxes(image):
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _values(band: Image.Image, whole: Image.Image) -> np.ndarray:
    values = np.asarray(band)
    # Pillow holds unsigned integers of 32 bits as if they were signed.
    is_unsigned = band.mode == "I" and whole.format == "TIFF" and _tag(whole, 339, 1) == 1
    return values.view(np.uint32) if is_unsigned else values


def _tag(image: Image.Image, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def _range(image: Image.Image, least: int) -> tuple[float, float]:
    """Returns the values that become 0 and 255, for grey of at least `least` bits."""
    lows, highs = [], []
    for box in _boxes(image):
        values = _values(image.crop(box), image)
        values = values[np.isfinite(values)]
        if values.size:
            lows.append(float(values.min()))
            highs.append(float(values.max()))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    if image.mode != "F" and low >= 0 and high <= 65535:
        return 0.0, _largest(high, least)
    return low, high


def _largest(value: float, least: int) -> float:
    """Returns the largest value of the depth that holds a value."""
    return next(2.0**each - 1 for each in _DEPTHS if each >= least and value < 2**each)


def _eight_bits(band: Image.Image, whole: Image.Image, low: float, high: float) -> Image.Image:
    """Scales grey to 0..255; values that are not finite become 0."""
    values = _values(band, whole).astype(np.float64)
    values = np.where(np.isfinite(values), values - low, 0.0) * (255 / (high - low or 1))
    return Image.fromarray(np.round(values).astype(np.uint8)).convert("RGB")
