"""Images with words under them: what a network is shown in training, and where it went wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cvt.data.image import BadImage
from cvt.data.sets import ImageSet
from cvt.evaluation.answers import Guesses
from cvt.figures import drawing, words
from cvt.tables import write_csv
from cvt.weights.record import Preprocessing

# --- The sheet: rows of images of one size, lines of text under each.

_COLUMNS = 4
_SIDE, _GAP, _MARGIN = 208, 16, 12  # pixels
_LINE, _HEADING = 26, 38
_DPI = 100
INK, FAINT, RIGHT, WRONG = "#1a1d21", "#5f6670", "#1b5e9c", "#b3420a"


@dataclass(frozen=True)
class Tile:
    """An image, and the lines under it with the colour of each."""

    image: Image.Image
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """Tiles under a heading; sentences between the two."""

    heading: str
    tiles: Sequence[Tile]
    notes: tuple[str, ...] = ()


def save_sheet(path: Path, sections: Sequence[Section]) -> None:
    """Draws sections of images, one below the other, four in a row.

    Images keep their shape. Small ones are enlarged by whole pixels, so that it shows how small
    they are; a line that is too long for its place is cut.
    """
    width = 2 * _MARGIN + _COLUMNS * _SIDE + (_COLUMNS - 1) * _GAP
    height = _MARGIN + sum(map(_height, sections))
    canvas = np.full((height, width, 3), 255, np.uint8)
    texts: list[tuple[int, int, str, int, dict[str, Any]]] = []
    top = _MARGIN
    for section in sections:
        room = width - 2 * _MARGIN
        texts += [(_MARGIN, top, section.heading, room, {"size": 14, "weight": "bold"})]
        top += _HEADING
        for note in section.notes:
            texts += [(_MARGIN, top - 4, note, room, {"size": 12, "color": FAINT})]
            top += _LINE
        for number, tile in enumerate(section.tiles):
            row, column = divmod(number, _COLUMNS)
            left = _MARGIN + column * (_SIDE + _GAP)
            y = top + row * _row_height(section)
            _paste(canvas, _fitted(tile.image), left, y)
            for place, (line, colour) in enumerate(tile.lines):
                below = y + _SIDE + 6 + place * _LINE
                texts += [(left, below, line, _SIDE + 4, {"size": 13, "color": colour})]
        top += -(-len(section.tiles) // _COLUMNS) * _row_height(section) + _GAP
    with drawing(path, dpi=_DPI, figsize=(width / _DPI, height / _DPI)) as figure:
        figure.figimage(canvas, origin="upper")
        for x, y, text, room, style in texts:
            drawn = figure.text(x / width, 1 - y / height, text, va="top", **{"color": INK} | style)
            _cut(drawn, text, room)


def _height(section: Section) -> int:
    rows = -(-len(section.tiles) // _COLUMNS)
    return _HEADING + len(section.notes) * _LINE + rows * _row_height(section) + _GAP


def _row_height(section: Section) -> int:
    lines = max((len(tile.lines) for tile in section.tiles), default=0)
    return _SIDE + lines * _LINE + _GAP + 4


def _fitted(image: Image.Image) -> Image.Image:
    """Brings an image into the square that is there for it."""
    scale = _SIDE / max(image.size)
    if scale >= 2:
        scale = int(scale)
    width, height = (max(round(side * scale), 1) for side in image.size)
    smooth = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), smooth)


def _paste(canvas: np.ndarray, image: Image.Image, left: int, top: int) -> None:
    """Puts an image above its words, at the left foot of its square."""
    x, y = left, top + _SIDE - image.height
    canvas[y - 1 : y + image.height + 1, x - 1 : x + image.width + 1] = 205  # a line around it
    canvas[y : y + image.height, x : x + image.width] = np.asarray(image)


def _cut(drawn: Any, text: str, room: int) -> None:
    """Takes letters away from the end of a text until it is no wider than its room, in pixels."""
    while len(text) > 1 and (width := drawn.get_window_extent().width) > room:
        text = text[: max(min(len(text) - 1, int(len(text) * room / width)), 1)].rstrip()
        drawn.set_text(f"{text}…")


# --- What the network sees in training.


def save_batch(
    path: Path,
    images: Tensor,
    targets: Tensor,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    notes: Sequence[str] = (),
) -> None:
    """Draws images of a training batch as the network gets them, with what they are to be called.

    Args:
        images: Prepared and varied, float32, (B, C, H, W); mean and deviation are taken out again.
        targets: Labels (B,), or shares of mixed ones (B, classes), which each add up to 1.
        notes: Sentences above them.
    """
    tiles = [
        Tile(_visible(image, preprocessing), _labels(target, classes))
        for image, target in zip(images, targets, strict=True)
    ]
    height, width = images.shape[-2:]
    heading = f"What the network sees: {len(tiles)} images of the first batch, {width}x{height}"
    save_sheet(path, [Section(heading, tiles, tuple(notes))])


def _visible(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    mean, std = (np.array(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    levels = (255 * (image.double().cpu().numpy() * std + mean)).round().clip(0, 255)
    pixels = np.broadcast_to(levels.astype(np.uint8), (3, *levels.shape[1:]))  # grey: three alike
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _labels(target: Tensor, classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if not target.dim():
        return ((words(classes[int(target)]), INK),)
    shares, order = target.sort(descending=True, stable=True)
    first, second = (
        (f"{100 * share:.0f} % {words(classes[index])}", colour)
        for share, index, colour in zip(
            shares[:2].tolist(), order[:2].tolist(), (INK, FAINT), strict=True
        )
    )
    is_mixed = float(shares[1]) >= 0.005
    return (first, second) if is_mixed else ((words(classes[int(order[0])]), INK),)


# --- Where it went wrong.


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The wrong answers to a split, the most confident first.

    Args:
        split: What people call it.
        images: The split.
        wrong: Of the wrong answers, their places among the guesses.
    """

    split: str
    images: ImageSet
    guesses: Guesses
    wrong: np.ndarray

    @classmethod
    def of(cls, split: str, images: ImageSet, guesses: Guesses) -> "Mistakes":
        """Finds them; images whose answers are equally sure stay in their order."""
        wrong = np.flatnonzero(guesses.classes != guesses.labels)
        order = np.argsort(-guesses.confidences[wrong], kind="stable")
        return cls(split=split, images=images, guesses=guesses, wrong=wrong[order])

    def rows(self, most: int) -> Iterable[dict[str, object]]:
        """Yields a row of a table for each of the first ones."""
        classes, found = self.images.classes, self.guesses
        for place in self.wrong[:most]:
            yield {
                "split": self.split,
                "image": self.images.name(int(found.indices[place])),
                "said": classes[found.classes[place]],
                "probability": float(found.confidences[place]),
                "true": classes[found.labels[place]],
            }

    def section(self, most: int) -> Section:
        """Returns the first ones as they are drawn; images that no longer open are left out."""
        tiles = []
        for place in self.wrong:
            if len(tiles) == most:
                break
            try:
                image = self.images.image(int(self.guesses.indices[place]))
            except BadImage:
                continue
            tiles.append(Tile(image, self._lines(place)))
        count, total = len(self.wrong), len(self.guesses.labels)
        these = "the most confident:" if count > len(tiles) else "all of them:"
        return Section(f"{count:,} of {total:,} {self.split} images are wrong; {these}", tiles)

    def _lines(self, place: int) -> tuple[tuple[str, str], ...]:
        classes, found = self.images.classes, self.guesses
        name = self.images.name(int(found.indices[place])).rpartition("/")[2]
        return (
            (f"said {_percent(found.confidences[place])} {words(classes[found.classes[place]])}",
             WRONG),
            (f"true {words(classes[found.labels[place]])}", RIGHT),
            (words(name), FAINT),
        )  # fmt: skip


_SHOWN, _LISTED = 12, 1000
_COLUMNS_OF_CSV = ("split", "image", "said", "probability", "true")


def save_mistakes(path: Path, splits: Sequence[Mistakes]) -> None:
    """Draws the twelve most confident mistakes of each split that has any; else nothing."""
    if found := [each for each in splits if len(each.wrong)]:
        save_sheet(path, [each.section(_SHOWN) for each in found])


def list_mistakes(path: Path, splits: Sequence[Mistakes]) -> None:
    """Writes up to a thousand mistakes of each split as CSV, the most confident first."""
    rows = [row for each in splits for row in each.rows(_LISTED)]
    write_csv(path, _COLUMNS_OF_CSV, rows, digits=4)


def _percent(share: float) -> str:
    return ">99 %" if share >= 0.995 else f"{100 * share:.0f} %"
