"""The reliability diagram: how often a model is right when it is so and so sure."""

from pathlib import Path
from typing import Any

import numpy as np

from cvt.evaluate.calibration import Reliability
from cvt.figures import picture

_TOO_SURE, _TOO_MODEST = "#d1495b", "#edae49"


def save_reliability(path: Path, answers: Reliability) -> None:
    """Draws accuracy against confidence, bin by bin, over a histogram of the confidences.

    A dot on the diagonal is a calibrated bin; the hatched gap between its accuracy and its mean
    confidence is what the calibration error adds up, and the colour tells the direction.

    Raises:
        UserError: The file cannot be written.
    """
    count = int(answers.counts.sum())
    title = f"Reliability, {count:,} images: calibration error {100 * answers.ece:.2f} %"
    with picture(path, figsize=(5.6, 6.8), layout="constrained") as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_bins(upper, answers)
        _draw_histogram(lower, answers)
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        upper.set_title(title)


def _draw_bins(axes: Any, answers: Reliability) -> None:
    filled = np.flatnonzero(answers.counts)
    lefts, width = 100 * answers.edges[filled], 100 / len(answers.counts)
    accuracy, confidence = 100 * answers.accuracy[filled], 100 * answers.confidence[filled]
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    axes.bar(lefts, low, width, align="edge", color="C0", edgecolor="white")
    for label, colour, chosen in (
        ("accuracy short of confidence", _TOO_SURE, confidence > accuracy),
        ("accuracy beyond confidence", _TOO_MODEST, confidence < accuracy),
    ):
        gap = (high - low)[chosen]
        axes.bar(
            lefts[chosen], gap, width, low[chosen], align="edge", facecolor=f"{colour}55",
            edgecolor=colour, hatch="///", linewidth=0.8, label=label,
        )  # fmt: skip
    axes.plot(
        confidence, accuracy, "o", color="black", markersize=4, clip_on=False, label="mean of a bin"
    )
    axes.plot([0, 100], [0, 100], "--", color="0.35", linewidth=1.2, label="calibrated")
    axes.set(xlim=(0, 100), ylim=(0, 101), ylabel="accuracy (%)")
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _draw_histogram(axes: Any, answers: Reliability) -> None:
    """Shares of the answers, with the two means whose distance is the overall bias."""
    total = answers.counts.sum()
    shares, width = 100 * answers.counts / total, 100 / len(answers.counts)
    axes.bar(100 * answers.edges[:-1], shares, width, align="edge", color="0.75", edgecolor="white")
    means = (
        ("accuracy", "C0", "-", 100 * answers.hits.sum() / total),
        ("mean confidence", _TOO_SURE, ":", 100 * answers.confidences.sum() / total),
    )
    for label, colour, style, mean in means:
        axes.axvline(
            mean, color=colour, linestyle=style, linewidth=1.8, label=f"{label} {mean:.1f} %"
        )
    axes.set(xlabel="confidence (%)", ylabel="% of images")
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
