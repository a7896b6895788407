"""Accuracy against what it costs, as a picture: MACs on the left, parameters on the right."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cvt.bench.labels import place_labels
from cvt.bench.results import Results, Standing
from cvt.figures import picture, words

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
    with picture(path, dpi=_DPI, figsize=(13, height)) as figure:
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
