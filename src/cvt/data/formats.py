"""The formats of images that are read, and what their files begin like."""

import re
from typing import NamedTuple


class Format(NamedTuple):
    """A format by the name that Pillow gives it.

    Args:
        name: In `PIL.Image.open(formats=[name])`.
        suffixes: In lower case, with the dot.
        start: Matches the beginning of a file; None: the format has no mark of its own.
    """

    name: str
    suffixes: tuple[str, ...]
    start: re.Pattern[bytes] | None


def _start(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), _start(rb"\xff\xd8\xff")),
    Format("PNG", (".png", ".apng"), _start(rb"\x89PNG\r\n\x1a\n")),
    Format("GIF", (".gif",), _start(rb"GIF8[79]a")),
    Format("BMP", (".bmp", ".dib"), _start(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0")),
    Format("TIFF", (".tif", ".tiff"), _start(rb"II[*+]\0|MM\0[*+]")),
    Format("WEBP", (".webp",), _start(rb"RIFF....WEBP")),
    Format(
        "PPM",
        (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        _start(rb"P[1-6]\s*(?:#[^\r\n]*[\r\n]\s*|\d+\s+){2}|Pf\s+-?\d"),
    ),
    Format("ICO", (".ico",), _start(rb"\0\0\x01\0[^\0]")),
    Format(
        "JPEG2000",
        (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
        _start(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ),
    Format("AVIF", (".avif", ".avifs"), _start(rb"....ftyp(?:....){0,31}?avi[fs]")),
    Format(
        "HEIF",
        (".heic", ".heif", ".heics", ".heifs", ".hif"),
        _start(rb"....ftyp(?:....){0,31}?(?:hei[cxms]|hev[cxms]|mif1|msf1)"),
    ),
    Format("TGA", (".tga", ".icb", ".vda", ".vst"), None),
)
"""All formats that are read. Those that a program or another picture hides in (EPS, WMF, ICNS) and
those of editors and games are not among them: what decodes them is little tested."""

SUFFIXES = frozenset(suffix for each in FORMATS for suffix in each.suffixes)
"""Suffixes of image files, in lower case and with the dot; HEIC also where it cannot be read."""


def format_of(content: bytes) -> str | None:
    """Returns the name of the format that the bytes of a file begin like, or None."""
    return next((each.name for each in FORMATS if each.start and each.start.match(content)), None)


def looks_like_image(content: bytes) -> bool:
    """Whether bytes begin like an image rather than like text."""
    return format_of(content[:4096]) is not None
