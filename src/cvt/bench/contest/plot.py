"""Accuracy against what it costs, as a picture: MACs on the left, parameters on the right."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from math import cos, hypot, pi, sin
from pathlib import Path
from typing import Any

from cvt.bench.contest.results import Results, Standing
from cvt.figures import drawing, words

# --- Names beside the points of a picture, so that none lies on another, on a point or on a line.

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


_FRONT, _REST, _INK = "#0b5fa5", "#8a8f98", "#2b2f36"
_HEIGHT_A_LABEL = 0.2
_DPI = 150


def save_plot(path: Path, results: Results) -> None:
    """Draws both panels into a PNG; nothing where no run was finished.

    Every point is a mean over seeds, its bar the sample standard deviation. The stairs are the
    Pareto front: the best accuracy that is to be had at each cost.

    Raises:
        UserError: The file cannot be written.
    """
    found = [each for each in results.standings if each.top1]
    if not found:
        return
    facts = results.facts
    height = max(5.0, 2.0 + _HEIGHT_A_LABEL * len(found))
    height = min(height, 11.0)
    with drawing(path, dpi=_DPI, figsize=(13, height)) as figure:
        _fill(figure, height, found, facts)


def _fill(figure: Any, height: float, found: Sequence[Standing], facts: Mapping[str, Any]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    # Labels are placed by the axes' final size, so it is given here.
    figure.subplots_adjust(
        left=0.05, right=0.99, bottom=0.55 / height, top=1 - 0.5 / height, wspace=0.04
    )
    for axes, (cost, quantity) in zip(
        panels, (("MACs for one image", "macs"), ("parameters", "num_params")), strict=True
    ):
        _draw(axes, found, quantity, cost)
    panels[0].set_ylabel(f"{facts['split']} top-1 (%)")
    seeds = f", {facts['seeds']} seeds, bars: standard deviation" if facts["seeds"] > 1 else ""
    side = facts["image_size"]
    figure.suptitle(
        f"{words(facts['data'])}, {side}x{side} pixels: {facts['budget']} of training each{seeds}",
        fontsize=11,
        color=_INK,
    )
    for axes, quantity in zip(panels, ("macs", "num_params"), strict=True):
        _label(axes, found, quantity)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the positions of the points (cost, worth) that no other one dominates, by cost.

    A point is dominated by one that costs no more and is worth no less, and better in one of them.
    """
    front: list[int] = []
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    for i in order:
        best = points[front[-1]] if front else None
        if best is None or points[i][1] > best[1] or points[i] == best:
            front.append(i)
    return front


def _draw(axes: Any, found: Sequence[Standing], quantity: str, cost: str) -> None:
    points = [_point(each, quantity) for each in found]
    front = pareto_front(points)
    axes.set_xscale("log")
    corners = _stairs([points[i] for i in front])
    axes.plot(*zip(*corners, strict=True), color=_FRONT, alpha=0.35, linewidth=2, zorder=1)
    for i, (standing, (x, y)) in enumerate(zip(found, points, strict=True)):
        color = _FRONT if i in front else _REST
        std = standing.top1.std if standing.top1 else None
        axes.errorbar(
            x, y, yerr=std, fmt="o", color=color, markersize=6, capsize=2.5, elinewidth=1, zorder=2
        )
    axes.set_xlim(_limits([x for x, _ in points]))
    axes.margins(y=0.1)
    axes.set_xlabel(f"{cost} (log scale; line: Pareto front)")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(_say)
    axes.xaxis.set_minor_formatter(_say_minor(axes))
    axes.tick_params(axis="x", which="minor", labelsize=8, colors=_REST)


def _limits(costs: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of a log axis with room for labels at both sides."""
    low, high = min(costs), max(costs)
    room = max((high / low) ** 0.16, 1.2)
    return low / room, high * room


def _label(axes: Any, found: Sequence[Standing], quantity: str) -> None:
    points = [_point(each, quantity) for each in found]
    front = pareto_front(points)
    colors = [_FRONT if i in front else _INK for i in range(len(found))]
    bars = [(each.top1.std or 0.0) if each.top1 else 0.0 for each in found]
    corners = _stairs([points[i] for i in front])
    place_labels(axes, points, bars, [each.label for each in found], colors, corners)


def _stairs(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the corners of the best that is to be had at each cost."""
    corners = list(front[:1])
    for (_, before), (cost, worth) in pairwise(front):
        corners += [(cost, before), (cost, worth)]
    return corners


def _point(standing: Standing, quantity: str) -> tuple[float, float]:
    assert standing.top1 is not None
    return float(getattr(standing, quantity)), standing.top1.mean


def _say(value: float, _: Any = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _say_minor(axes: Any) -> Any:
    """Names 2 and 5 of each decade, and more only where the axis spans less than one."""

    def say(value: float, _: Any = None) -> str:
        low, high = axes.get_xlim()
        digit = round(value / 10 ** len(str(int(value))[1:])) if value >= 1 else 0
        named = (2, 5) if high / low > 6 else (2, 3, 4, 5, 6, 7, 8, 9)
        return _say(value) if digit in named else ""

    return say
