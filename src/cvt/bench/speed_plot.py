"""Images a second as a picture: a panel for each setting, a bar for each entrant."""

from pathlib import Path
from typing import Any

from cvt.bench.speed_case import Setting
from cvt.bench.speed_results import SpeedResults, SpeedRow
from cvt.bench.speed_screen import say_rate
from cvt.figures import picture, words

_BAR, _BASE, _INK, _FAILED = "#0b5fa5", "#8a8f98", "#2b2f36", "#b3261e"
_DPI = 150
_A_LETTER, _A_BAR = 0.075, 0.32  # inches
_ROOM_FOR_WORDS = 1.6  # of the longest bar


def save_speed_plot(path: Path, results: SpeedResults) -> None:
    """Draws the medians as bars, smallest to largest round as whiskers, and ratios beside them.

    Raises:
        UserError: The file cannot be written.
    """
    settings = results.settings
    columns = 1 if len(settings) == 1 else 2
    lines = -(-len(settings) // columns)
    labels = max(len(words(row.entrant.label)) for row in results.rows) * _A_LETTER + 0.2
    most = max(len(results.of(setting)) for setting in settings)
    width, height = columns * (labels + 4.6), lines * (most * _A_BAR + 0.85) + 0.4
    with picture(path, dpi=_DPI, figsize=(width, height), layout="constrained") as figure:
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, setting in zip(panels.flat, settings, strict=False):
            _draw(axes, setting, results.of(setting), most)
        for axes in panels.flat[len(settings) :]:
            axes.set_visible(False)
        figure.suptitle(
            f"Images/s (median and range of the rounds) and ratio to {results.base_words}",
            fontsize=9,
            color=_INK,
        )


def _draw(axes: Any, setting: Setting, rows: list[SpeedRow], most: int) -> None:
    longest = max((row.images_per_s.max for row in rows if row.images_per_s), default=0.0)
    for place, row in enumerate(rows):
        speed = row.images_per_s
        if speed is None:
            said = "failed" if row.error else "not measured yet"
            axes.text(0, place, f" {said}", va="center", fontsize=8, color=_FAILED)
            continue
        color = _BASE if row.entrant == row.base else _BAR
        axes.barh(place, speed.median, height=0.62, color=color)
        below, above = speed.median - speed.min, speed.max - speed.median
        axes.errorbar(
            speed.median, place, xerr=[[below], [above]], color=_INK, capsize=2.5, elinewidth=1
        )
        ratio = f"   {row.ratio.median:.2f}x" if row.ratio else ""
        axes.annotate(
            f"{say_rate(speed.median)}{ratio}", (speed.max, place), (5, 0),
            textcoords="offset points", va="center", fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [words(row.entrant.label) for row in rows], fontsize=8)
    axes.set_ylim(most - 0.4, -0.6)  # bars as thick in every panel
    axes.set_xlim(0, (longest or 1.0) * _ROOM_FOR_WORDS)
    axes.xaxis.set_visible(longest > 0)
    axes.set_title(setting.words, fontsize=9, color=_INK, loc="left")
    axes.tick_params(axis="x", labelsize=7, colors=_BASE)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
