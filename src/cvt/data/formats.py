"""The image formats that are read, and the part of a file that its decoder gets to see.

A decoder is handed what describes the pixels and nothing else: text, colour profiles, thumbnails,
EXIF and further frames, where odd and hostile files differ from plain ones, are stripped.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

MAX_SCANS = 100
"""Scans of a JPEG, each of which covers the whole image; encoders write about ten."""

_MAX_TILE = 1 << 24  # pixels of a TIFF's tile, where the image itself is smaller
_MAX_TEXT = 1 << 20  # bytes in which an orientation is looked for


class ImageFormat(NamedTuple):
    """An image format, by Pillow's name for it, and its suffixes in lower case, with the dot."""

    name: str
    suffixes: tuple[str, ...]
    start: bytes | None  # a pattern of a file's beginning; None if the format has no signature


FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff"),
    ImageFormat("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("GIF", (".gif",), rb"GIF8[79]a"),
    ImageFormat("BMP", (".bmp", ".dib"), rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    ImageFormat("WEBP", (".webp",), rb"RIFF....WEBP"),
    ImageFormat(
        "PPM",
        (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        rb"P[1-6]\s*(?:#[^\r\n]*[\r\n]\s*|\d+\s+){2}|Pf\s+-?\d",
    ),
    ImageFormat("ICO", (".ico",), rb"\0\0\x01\0[^\0]"),
    ImageFormat(
        "JPEG2000",
        (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
        rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    ),
    ImageFormat("AVIF", (".avif", ".avifs"), rb"....ftyp(?:....){0,31}?avi[fs]"),
    ImageFormat(
        "HEIF",
        (".heic", ".heif", ".heics", ".heifs", ".hif"),
        rb"....ftyp(?:....){0,31}?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    ),
    ImageFormat("TGA", (".tga", ".icb", ".vda", ".vst"), None),
)
"""All formats that are read. Those that embed a program or another image (EPS, WMF, ICNS) and those
of editors and games are left out: their decoders are little tested."""

SUFFIXES = frozenset(suffix for each in FORMATS for suffix in each.suffixes)
"""Suffixes of image files, in lower case and with the dot; HEIC also where it cannot be read."""


def format_of(content: bytes) -> str | None:
    """Returns the name of the format that the bytes of a file begin like, or None."""
    for each in FORMATS:
        if each.start and re.match(each.start, content, re.DOTALL):
            return each.name
    return None


def looks_like_image(content: bytes) -> bool:
    """Whether bytes begin like an image rather than like text."""
    return format_of(content[:4096]) is not None


class Excess(ValueError):
    """A file that costs far more than its pixels would; the message continues after its name."""


def bare(content: bytes, kind: str) -> tuple[bytes, int | None]:
    """Returns the part of a file that its decoder needs, and the orientation (1 to 8) stated in it.

    A file that would cost far more than its pixels do is an `Excess`, a damaged one any other
    `ValueError` or a `struct.error`.

    Args:
        kind: As `format_of` returned it.
    """
    strips = {
        "JPEG": _bare_jpeg,
        "PNG": _bare_png,
        "GIF": _bare_gif,
        "TIFF": _bare_tiff,
        "ICO": _bare_icon,
        "JPEG2000": _whole_jpeg_2000,
        "AVIF": _without_exif_item,
        "HEIF": _without_exif_item,
    }
    return strips[kind](content) if kind in strips else (content, None)


def stated_orientation(exif: bytes | None, xmp: bytes | str | None) -> int | None:
    """Returns the orientation, 1 to 8, that EXIF or else XMP states."""
    with suppress(struct.error, ValueError):
        # Of EXIF, the one tag is looked for and no other, whatever the others hold.
        directory = _Directory((exif or b"").removeprefix(b"Exif\0\0"))
        row = next((row for row in directory.rows() if row[0] == _ORIENTATION), None)
        if turn := row and _valid(directory.number(row)):
            return turn
    text = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp or b""
    found = re.search(rb"""tiff:Orientation(?:=["']|>)([1-8])""", text[:_MAX_TEXT])
    return int(found[1]) if found else None


def _valid(orientation: int | None) -> int | None:
    return orientation if orientation in range(1, 9) else None


# JPEG: all markers but restarts and stuffed bytes.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_START, _END, _SCAN, _JFIF, _APP1, _ADOBE, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_DROPPED = frozenset(range(_JFIF, 0xF0)) - {_JFIF, _ADOBE} | {_COMMENT}


def _bare_jpeg(content: bytes) -> tuple[bytes, int | None]:
    kept, exif, xmp, frame = [content[:2]], None, None, None
    for marker, start, end in _segments(content, 2):
        if marker == _APP1:
            body = content[start + 4 : end]
            if body.startswith(b"Exif\0\0"):
                exif = exif or body
            elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = xmp or body
        elif marker in _FRAMES:
            frame = (marker, *struct.unpack_from(">HHB", content, start + 5))
        if marker == _SCAN:
            kept.append(content[start:])
            _check_scans(content, start, frame)
            break
        if marker not in _DROPPED:
            kept.append(content[start:end])
    return b"".join(kept), stated_orientation(exif, xmp)


def _segments(content: bytes, place: int) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of each segment, those between scans included."""
    while found := _MARKER.search(content, place):
        place = found.end()
        if found[1][0] not in (1, _START, _END):
            place += max(2, struct.unpack_from(">H", content, place)[0])
        yield found[1][0], found.start(), place


def _check_scans(content: bytes, start: int, frame: tuple[int, int, int, int] | None) -> None:
    """Counts the scans of a JPEG that a decoder would read beyond the first."""
    if frame is None or len(content) < start + 5:
        return
    marker, height, width, parts = frame
    if marker not in _PROGRESSIVE and content[start + 4] >= parts:
        return
    scans = 0
    for marker, _, _ in _segments(content, start):
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            raise Excess(
                f"is a JPEG of {width} x {height} pixels in more than {MAX_SCANS} scans, expected "
                "about ten; save it again, not progressive"
            )
        if marker == _END:
            return


_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def _bare_png(content: bytes) -> tuple[bytes, int | None]:
    kept, said, place = [content[:8]], {}, 8
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if name in _CHUNKS:
            kept.append(content[place:end])
        elif end > len(content):
            raise ValueError("it ends within a chunk")
        else:
            said |= _png_block(name, content[place + 8 : end - 4])
        place = end
    return b"".join(kept), stated_orientation(said.get("exif") or said.get("raw"), said.get("xmp"))


def _png_block(name: bytes, body: bytes) -> dict[str, bytes]:
    """Returns the EXIF or XMP in a chunk; other text is not even inflated."""
    if name == b"eXIf":
        return {"exif": body}
    if name not in (b"tEXt", b"zTXt", b"iTXt"):
        return {}
    key, _, text = body.partition(b"\0")
    if key == b"XML:com.adobe.xmp" and name == b"iTXt":
        packed, (_, _, text) = text[:1] == b"\1", (*text[2:].split(b"\0", 2), b"", b"", b"")[:3]
        return {"xmp": _inflated(text) if packed else text}
    if key == b"Raw profile type exif" and name != b"iTXt":  # as ImageMagick writes it
        text = _inflated(text[1:]) if name == b"zTXt" else text
        digits = b"".join(text.split(b"\n")[3:]).decode("ascii", "replace")
        return {
            "raw": bytes.fromhex(digits) if re.fullmatch(r"(?:[\da-fA-F]{2})+", digits) else b""
        }
    return {}


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MAX_TEXT)
    except zlib.error:
        return b""


def _bare_gif(content: bytes) -> tuple[bytes, int | None]:
    """Keeps the palette, the control block of the first frame, and what follows that."""
    flags = content[10:11] or b"\0"
    place = start = 13 + (3 << (flags[0] & 7) + 1 if flags[0] & 0x80 else 0)
    control = b""
    while content[place : place + 1] == b"!":
        begin, label = place, content[place + 1 : place + 2]
        place += 2
        while size := content[place] if place < len(content) else 0:
            place += 1 + size
        place += 1
        if label == b"\xf9":
            control = content[begin:place]
    return content[:start] + control + content[place:], None


# TIFF: size, bits, compression, kind of colour, order of bits, offsets and lengths of strips and
# tiles, palette, and what the compressions need.
_TAGS = frozenset(
    (
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324),
        *(325, 332, 338, 339, 347, *range(512, 522), *range(529, 533), 50674),
    )
)
_ORIENTATION, _XMP, _MOST_BANDS = 274, 700, 6
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}

_Row = tuple[int, int, int, bytes]  # tag, kind, count, and the value or where it lies


class _Directory:
    """The first directory of a TIFF file, classic or BigTIFF, or of EXIF, which is one."""

    def __init__(self, content: bytes) -> None:
        orders = {b"II": "<", b"MM": ">"}
        if content[:2] not in orders:
            raise ValueError("it is no TIFF")
        self.content, self.order = content, orders[content[:2]]
        is_big = struct.unpack_from(self.order + "H", content, 2)[0] == 43
        self.count, self.row = ("Q", "HHQ8s") if is_big else ("H", "HHI4s")
        self.next = "Q" if is_big else "I"
        (self.place,) = struct.unpack_from(self.order + self.next, content, 8 if is_big else 4)

    def rows(self) -> Iterator[_Row]:
        """Yields its rows in order."""
        (count,) = struct.unpack_from(self.order + self.count, self.content, self.place)
        place = self.place + struct.calcsize(self.order + self.count)
        for _ in range(count):
            yield struct.unpack_from(self.order + self.row, self.content, place)
            place += struct.calcsize(self.order + self.row)

    def number(self, row: _Row) -> int | None:
        """Returns a row's value if that is a single whole number."""
        _, kind, count, value = row
        if kind not in _NUMBERS or count != 1 or _SIZES[kind] > len(value):
            return None
        return struct.unpack_from(self.order + _NUMBERS[kind], value)[0]

    def data(self, row: _Row) -> bytes:
        """Returns the bytes that a row holds, up to `_MAX_TEXT`."""
        _, kind, count, value = row
        size = min(_MAX_TEXT, _SIZES.get(kind, 0) * count)
        if size <= len(value):
            return value[:size]
        (place,) = struct.unpack(self.order + self.next, value)
        return self.content[place : place + size]


def _bare_tiff(content: bytes) -> tuple[bytes, int | None]:
    """Overwrites the first directory by a shorter one, which is then the only one."""
    directory = _Directory(content)
    kept: dict[int, _Row] = {}
    others: dict[int, _Row] = {}
    for row in directory.rows():
        is_kept = row[0] in _TAGS and row[1] in _SIZES
        (kept if is_kept else others).setdefault(row[0], row)
    if sum(_SIZES[kind] * count for _, kind, count, _ in kept.values()) > len(content):
        raise ValueError("its tags claim more bytes than it has")
    _check_parts({tag: directory.number(row) or 0 for tag, row in kept.items()}, kept)
    order = directory.order
    new = struct.pack(order + directory.count, len(kept))
    new += b"".join(struct.pack(order + directory.row, *row) for row in kept.values())
    new += struct.pack(order + directory.next, 0)
    changed = bytearray(content)
    changed[directory.place : directory.place + len(new)] = new
    turned = others.get(_ORIENTATION) and _valid(directory.number(others[_ORIENTATION]))
    xmp = directory.data(others[_XMP]) if _XMP in others else None
    return bytes(changed), turned or stated_orientation(None, xmp)


def _check_parts(numbers: dict[int, int], rows: dict[int, _Row]) -> None:
    """Checks that the strips or tiles of a TIFF add up to no more than its size."""
    width, height, bands = numbers.get(256, 0), numbers.get(257, 0), numbers.get(277, 1)
    across, down = numbers.get(322, width), numbers.get(323, height)
    if bands > _MOST_BANDS:
        raise ValueError(f"it has {bands} values for each pixel")
    if across * down > max(_MAX_TILE, width * height):
        raise Excess(
            f"is a TIFF of {width} x {height} pixels in tiles of {across} x {down}, expected tiles "
            f"of {_MAX_TILE / 1e6:.0f} megapixels at most; save it again"
        )
    tiles = -(-width // max(1, across)) * -(-height // max(1, down))
    for tag, most in ((273, height), (324, tiles)):
        if tag in rows and rows[tag][2] > max(1, most) * max(1, bands):
            raise Excess(
                f"is a TIFF of {width} x {height} pixels in {rows[tag][2]} parts, expected "
                f"{most * bands} at most; save it again"
            )


def _bare_icon(content: bytes) -> tuple[bytes, int | None]:
    """Returns the image that Pillow would pick from an icon, if that is a PNG; else the icon."""
    (count,) = struct.unpack_from("<H", content, 4)
    entries = []
    for number in range(count):
        width, height, colours, _, _, bits, size, place = struct.unpack_from(
            "<BBBBHHII", content, 6 + 16 * number
        )
        depth = bits or (colours and (colours - 1).bit_length()) or 256
        entries.append((-(width or 256) * (height or 256), depth, place, size))
    _, _, place, size = min(entries, key=lambda entry: entry[:2])
    inner = content[place : place + size]
    if format_of(inner) == "PNG":
        return _bare_png(inner)
    _, width, height = struct.unpack_from("<Iii", inner)
    if not (0 <= width <= 256 and 0 <= height <= 512):  # a mask lies below the image
        raise ValueError(f"an icon cannot be {width} x {height} pixels large")
    return content, None


# JPEG 2000: markers of its codestream.
_SIZE, _CODING, _CODING_OF_ONE, _TILE, _DATA, _EOC = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9


def _whole_jpeg_2000(content: bytes) -> tuple[bytes, int | None]:
    """Checks what would cost its decoder memory: layers, tiles, and blocks of a few pixels."""
    place, tile, size = _codestream(content) + 2, (0, 0), (0, 0, 1)
    while place + 4 <= len(content):
        marker, length = struct.unpack_from(">HH", content, place)
        if marker == _DATA:
            start, extent = tile
            if not extent:  # the last one, to the end
                break
            if start + extent <= place:
                raise ValueError("a tile ends before its data begin")
            place = start + extent
            continue
        if marker == _EOC or length < 2:
            break
        body = content[place + 4 : place + 2 + length]
        if marker == _SIZE:
            size = _check_tiles(body)
        elif marker == _CODING:
            _check_layers(body)
            _check_blocks(size, body[0], body[5:])
        elif marker == _CODING_OF_ONE:
            body = body[1 if size[2] < 257 else 2 :]
            _check_blocks(size, body[0], body[1:])
        elif marker == _TILE:
            tile = place, struct.unpack_from(">I", body, 2)[0]
        place += 2 + length
    return content, None


def _codestream(content: bytes) -> int:
    """Returns where the codestream begins; in a JP2 file it lies in a box."""
    place = 0
    while content[place : place + 2] != b"\xff\x4f":
        size, name = struct.unpack_from(">I4s", content, place)
        if name == b"jp2c":
            place += 16 if size == 1 else 8
            break
        if size < 8:  # up to the end, or of more than four gigabytes
            raise ValueError("it has no codestream")
        place += size
    return place


def _check_tiles(body: bytes) -> tuple[int, int, int]:
    """Returns width, height and number of colours."""
    _, width, height, left, top, across, down, _, _, parts = struct.unpack_from(">H8IH", body)
    width, height = width - left, height - top
    if width < 1 or height < 1:
        raise ValueError("its image has no area")
    tiles = -(-width // max(1, across)) * -(-height // max(1, down))
    if tiles > max(64, width * height // 2048):
        raise Excess(
            f"is a JPEG 2000 of {width} x {height} pixels in {tiles} tiles, expected tiles of "
            "64 x 64 at least; save it again"
        )
    return width, height, parts


def _check_layers(body: bytes) -> None:
    (layers,) = struct.unpack_from(">H", body, 2)
    if layers > MAX_SCANS:
        raise Excess(
            f"is a JPEG 2000 in {layers} layers, expected {MAX_SCANS} at most; save it again"
        )


def _check_blocks(size: tuple[int, int, int], style: int, body: bytes) -> None:
    """Counts the blocks that are coded separately, over all levels of detail."""
    width, height, _ = size
    levels, across, down = body[0], (body[1] & 15) + 2, (body[2] & 15) + 2
    blocks = 0
    for level in range(min(levels, 32) + 1):
        area = body[5 + level] if style & 1 else 0xFF  # of blocks that lie together, as powers of 2
        half = level > 0  # three bands, each of half the size
        wide = (min(across, (area & 15) - half) + half, min(down, (area >> 4) - half) + half)
        scale = min(levels, 32) - level
        across_all, down_all = (
            -(-side >> scale + max(0, power)) for side, power in zip(size, wide, strict=False)
        )
        blocks += max(1, across_all) * max(1, down_all) * (3 if half else 1)
    if blocks > 1000 + width * height // 256:
        raise Excess(
            f"is a JPEG 2000 of {width} x {height} pixels in {blocks} blocks, expected blocks of "
            "64 x 64 or so; save it again"
        )


# The entry of a HEIF or AVIF file's table that says which item is EXIF.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4})\0\0)Exif", re.DOTALL)


def _without_exif_item(content: bytes) -> tuple[bytes, int | None]:
    """Hides EXIF from the decoder; the rotation of such images is stated elsewhere."""
    return _EXIF_ITEM.sub(rb"\1none", content), None
