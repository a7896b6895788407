"""Names beside the points of a picture, so that none lies on another, on a point or on a line."""

from collections.abc import Sequence
from itertools import pairwise, product
from math import cos, hypot, pi, sin
from typing import Any

from cvt.figures import words

Box = tuple[float, float, float, float]
Pixel = tuple[float, float]

# In typographic points, 72 to the inch.
_FONT = 7.5
_MARK = 3.5
_DISTANCES = (6, 9, 13, 18, 25, 34, 45, 58)
_TIED_FROM = 12
_ANGLES = tuple(2 * pi * number / 16 for number in range(16))
_LONGEST = 44
# What it costs to lie on something, in points of distance for each label that would be covered.
_COVERED, _ON_A_LINE, _OUTSIDE = 400.0, 150.0, 800.0


def place_labels(
    axes: Any,
    points: Sequence[tuple[float, float]],
    bars: Sequence[float],
    labels: Sequence[str],
    colors: Sequence[str],
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes a label beside each point, as near to it as there is room.

    A label that had to go farther away is tied to its point by a thin line.

    Args:
        points: In data coordinates; the axes have to have their final place.
        bars: Half the height of each point's error bar.
        line: Corners of a line that labels should not lie on.
    """
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # matplotlib puts them off until asked
    unit = axes.figure.dpi / 72
    centres = [_pixel(axes, point) for point in points]
    taken = [_around(centre, _MARK * unit) for centre in centres]
    for (x, y), (cost, worth), bar in zip(centres, points, bars, strict=True):
        half = _pixel(axes, (cost, worth + bar))[1] - y
        taken.append((x - 2 * unit, y - half, x + 2 * unit, y + half))
    lines = _dots([_pixel(axes, corner) for corner in line], unit)
    frame = axes.get_window_extent().extents
    for i in sorted(range(len(points)), key=lambda i: _crowd(centres, i, unit), reverse=True):
        note = axes.annotate(
            words(labels[i], _LONGEST), points[i], (0, 0), textcoords="offset points",
            fontsize=_FONT, color=colors[i], zorder=3, va="bottom", ha="left",
        )  # fmt: skip
        extent = note.get_window_extent()
        box, tied = _best(
            centres[i], (extent.width, extent.height), taken, lines, tuple(frame), unit
        )
        taken.append(box)
        x, y = centres[i]
        note.set_position(((box[0] - x) / unit, (box[1] - y) / unit))
        if tied:
            end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            axes.annotate(
                "", points[i], ((end[0] - x) / unit, (end[1] - y) / unit),
                textcoords="offset points", zorder=1,
                arrowprops={"arrowstyle": "-", "color": colors[i], "alpha": 0.5, "linewidth": 0.6},
            )  # fmt: skip


def _best(
    centre: Pixel,
    size: tuple[float, float],
    taken: Sequence[Box],
    lines: Sequence[Box],
    frame: Sequence[float],
    unit: float,
) -> tuple[Box, bool]:
    """Returns the box that costs a label least, and whether a line should tie it to its point."""
    width, height = size
    area, found = width * height, None
    for distance, angle in product(_DISTANCES, _ANGLES):
        right, up = cos(angle), sin(angle)
        left = centre[0] + right * distance * unit - width * (1 - right) / 2
        low = centre[1] + up * distance * unit - height * (1 - up) / 2
        box = (left, low, left + width, low + height)
        cost = distance - 0.5 * right  # to the right is where one looks first
        cost += _COVERED * sum(_shared(box, other) for other in taken) / area
        cost += _ON_A_LINE * sum(_shared(box, other) for other in lines) / area
        cost += _OUTSIDE * (1 - _shared(box, (frame[0], frame[1], frame[2], frame[3])) / area)
        if found is None or cost < found[0]:
            found = (cost, box, distance >= _TIED_FROM)
    assert found is not None
    return found[1], found[2]


def _pixel(axes: Any, point: tuple[float, float]) -> Pixel:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _around(centre: Pixel, radius: float) -> Box:
    x, y = centre
    return (x - radius, y - radius, x + radius, y + radius)


def _dots(corners: Sequence[Pixel], unit: float) -> list[Box]:
    """Returns small boxes along a line."""
    boxes = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        count = max(int(hypot(to_x - x, to_y - y) / (3 * unit)), 1)
        for step in range(count + 1):
            part = step / count
            boxes.append(_around((x + part * (to_x - x), y + part * (to_y - y)), 1.5 * unit))
    return boxes


def _crowd(centres: Sequence[Pixel], i: int, unit: float) -> float:
    """How crowded it is around a point: those that have least room choose first."""
    x, y = centres[i]
    return sum(1 / (20 * unit + hypot(other[0] - x, other[1] - y)) for other in centres)


def _shared(one: Box, other: Box) -> float:
    """Returns the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
