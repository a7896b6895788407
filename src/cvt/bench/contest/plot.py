"""Accuracy against what it costs: MACs above, parameters below."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cvt.bench.contest.results import ContestResults, Spread
from cvt.figures import drawing, words
from cvt.training.report import interval

_FRONT, _INK, _MINOR = "#0b5fa5", "#2b2f36", "#8a8f98"
# With the ten colours of the usual cycle, each of up to seventy contenders has its own mark.
_MARKS = "osD^vPX"


def save_contest(path: Path, results: ContestResults) -> None:
    """Draws both panels into a PNG; nothing where no run was finished.

    Every mark is a mean over seeds, its bar the sample standard deviation or, of a single seed,
    the 95 % interval that so many images leave. The axis spans these intervals in any case, so
    that nothing looks far apart that is not. The stairs are the Pareto front: the best accuracy
    that is to be had at each cost. The legend names the best first.
    """
    found = [(each.label, each, each.top1) for each in results.ranked if each.top1]
    if not found:
        return
    facts, rows = results.facts, -(-len(found) // 2)
    count = facts["num_images"]
    with drawing(path, dpi=120, figsize=(8, 7.4 + 0.22 * rows), layout="constrained") as figure:
        panels = figure.subplots(2, 1, sharey=True)
        for axes, (cost, quantity) in zip(
            panels, (("MACs for one image", "macs"), ("parameters", "num_params")), strict=True
        ):
            points = [(float(getattr(each, quantity)), top1.mean) for _, each, top1 in found]
            stairs = _stairs([points[i] for i in pareto_front(points)])
            axes.plot(*zip(*stairs, strict=True), color=_FRONT, alpha=0.35, linewidth=2, zorder=1)
            for i, ((label, _, top1), (x, y)) in enumerate(zip(found, points, strict=True)):
                axes.errorbar(
                    x, y, yerr=_bar(top1, count), fmt=_MARKS[i % len(_MARKS)], color=f"C{i % 10}",
                    markersize=7, capsize=2.5, elinewidth=1, label=words(label, 44), zorder=2,
                )  # fmt: skip
            _scale(axes, [x for x, _ in points])
            axes.set_xlabel(f"{cost} (log scale; line: Pareto front)")
            axes.set_ylabel(f"{facts['split']} top-1 (%)")
        spans = [edge for _, _, top1 in found for edge in _span(top1, count)]
        room = 0.05 * (max(spans) - min(spans))
        panels[0].set_ylim(max(min(spans) - room, -1), min(max(spans) + room, 101))
        marks, names = panels[0].get_legend_handles_labels()
        figure.legend(marks, names, loc="outside lower center", frameon=False, fontsize=9, ncols=2)
        kinds = {top1.std is None for _, _, top1 in found}
        bars = {
            False: f"standard deviation of {facts['seeds']} seeds",
            True: f"95 % interval of {count:,} images, one seed",
        }
        side = facts["image_size"]
        title = f"{words(facts['data'])}, {side}x{side} pixels: {facts['budget']} of training each"
        said = f"bars: {'; '.join(bars[kind] for kind in sorted(kinds))}"
        figure.suptitle(f"{title}\n{said}", fontsize=11, color=_INK)


def _bar(top1: Spread, num_images: int) -> list[list[float]]:
    """How far a mark's bar reaches down and up."""
    if top1.std is not None:
        return [[top1.std], [top1.std]]
    low, high = interval(top1.mean, num_images)
    return [[top1.mean - low], [high - top1.mean]]


def _span(top1: Spread, num_images: int) -> list[float]:
    """What the axis has to show of a contender: its bar, and what its images leave open."""
    std = top1.std or 0.0
    return [top1.mean - std, top1.mean + std, *interval(top1.mean, num_images)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the points that no other one beats at their cost or less, by rising cost.

    Args:
        points: Cost and worth of each.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        best = points[front[-1]] if front else None
        if best is None or points[i][1] > best[1] or points[i] == best:
            front.append(i)
    return front


def _stairs(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the corners of the best that is to be had at each cost."""
    corners = list(front[:1])
    for (_, before), (cost, worth) in pairwise(front):
        corners += [(cost, before), (cost, worth)]
    return corners


def _scale(axes: Any, costs: Sequence[float]) -> None:
    """A log axis with units; between decades 2 and 5 are named, on a short one every digit."""
    from matplotlib.ticker import EngFormatter, LogLocator

    room = max((max(costs) / min(costs)) ** 0.06, 1.1)
    low, high = min(costs) / room, max(costs) * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5) if high / low > 6 else range(2, 10)))
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(EngFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=8, colors=_MINOR)
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
