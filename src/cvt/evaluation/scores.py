"""The figures of an evaluation, from logits and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvt.evaluation.answers import Logits
from cvt.figures import drawing, words
from cvt.plain import to_plain

# --- Whether a model is right as often as it says.


@dataclass(frozen=True, eq=False)
class Reliability:
    """Answers sorted into equal-width bins of confidence; bin i is i / bins to (i + 1) / bins.

    A confidence on the border of two bins belongs to the upper one, and 1 to the last.

    Args:
        counts: Answers in each bin: int64, shape (bins,).
        confidences: Sum of what they claimed, each 0 to 1: shape (bins,).
        hits: How many of them were right: shape (bins,).

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """

    counts: np.ndarray
    confidences: np.ndarray
    hits: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: the bins' gaps, each weighted by its answers.

        Source: the same, equation 3.
        """
        return float(np.abs(self.hits - self.confidences).sum() / self.counts.sum())

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins, from 0 to 1: shape (bins + 1,)."""
        return np.linspace(0, 1, len(self.counts) + 1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers in each bin, 0 to 1; nan where there are none."""
        return _means(self.hits, self.counts)

    @property
    def confidence(self) -> np.ndarray:
        """Mean confidence in each bin, 0 to 1; nan where there are none."""
        return _means(self.confidences, self.counts)

    def to_dict(self) -> list[dict[str, Any]]:
        """Returns plain data for JSON: one object for each bin that holds answers."""
        edges, accuracy, confidence = self.edges, self.accuracy, self.confidence
        return [
            {
                "from": round(float(edges[index]), 6),
                "to": round(float(edges[index + 1]), 6),
                "num_images": int(self.counts[index]),
                "confidence": float(confidence[index]),
                "accuracy": float(accuracy[index]),
            }
            for index in np.flatnonzero(self.counts)
        ]


def reliability(confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 15) -> Reliability:
    """Sorts answers by how sure the model was.

    Shape: `confidences` (N,) in 0..1 and `is_right` (N,), one of each per answer.
    """
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    return Reliability(
        np.bincount(bins, minlength=num_bins),
        np.bincount(bins, confidences, num_bins),
        np.bincount(bins, is_right, num_bins),
    )


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many images it has, and percentages.

    Args:
        accuracy: Share of its images that were recognised (recall); None without images.
        precision: Share of the answers naming it that were right; None if it was never named.
    """

    name: str
    num_images: int
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model is worth on a set of images.

    Args:
        top1: Percentage of images whose most likely class is right.
        top5: Percentage whose class is among the five most likely; None up to five classes.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error over 15 bins, 0 to 1.
        reliability: Those bins.
        num_images: Images that were measured.
        bad: One sentence for each image that could not be read and was left out.
        per_class: In the order of the model's outputs.
        confusion: Images of class i (row) that were taken for class j (column): int64, (N, N).
        split: The split that was measured, or "all".
        num_found: Images in all splits of the data together.
        split_was_cut: Whether that split was cut out, as the run had done, of data without one.
        notes: What else the reader should know of the data.
    """

    top1: float
    top5: float | None
    loss: float
    ece: float
    reliability: Reliability
    num_images: int
    bad: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray
    split: str | None = None
    num_found: int | None = None
    split_was_cut: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without the confusion matrix and figures that are None."""
        return to_plain(self, leave_out={"confusion"}, none=False)

    def save_confusion(self, path: str | Path) -> None:
        """Draws the confusion matrix, each row as shares of its class."""
        save_confusion(Path(path), self.confusion, [score.name for score in self.per_class])

    def save_reliability(self, path: str | Path) -> None:
        """Draws accuracy against confidence, with the calibration error."""
        save_reliability(Path(path), self.reliability)


def summarise(answers: Logits, class_names: Sequence[str]) -> Evaluation:
    """Returns the figures of a model's answers; `class_names` are those of its outputs."""
    probabilities = answers.logits.double().softmax(dim=1)
    confidences, guesses = (each.numpy() for each in probabilities.max(dim=1))
    labels = answers.labels.numpy()
    num_classes = len(class_names)
    pairs = np.bincount(labels * num_classes + guesses, minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    bins = reliability(confidences, guesses == labels)
    return Evaluation(
        top1=answers.top_k(1),
        top5=answers.top_k(5) if num_classes > 5 else None,
        loss=answers.loss(),
        ece=bins.ece,
        reliability=bins,
        num_images=len(labels),
        bad=answers.bad,
        per_class=_class_scores(confusion, class_names),
        confusion=confusion,
    )


def _class_scores(confusion: np.ndarray, names: Sequence[str]) -> tuple[ClassScore, ...]:
    def share(hits: int, total: int) -> float | None:
        return 100 * hits / total if total else None

    right, truly, named = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassScore(
            name=name,
            num_images=int(truly[index]),
            accuracy=share(int(right[index]), int(truly[index])),
            precision=share(int(right[index]), int(named[index])),
        )
        for index, name in enumerate(names)
    )


# --- The confusion matrix, drawn.

_NAMED_UP_TO = 40
_NUMBERED_UP_TO = 20


def save_confusion(path: Path, confusion: np.ndarray, names: list[str]) -> None:
    """Draws an (N, N) matrix as shares of its rows, in the format of the path's suffix.

    Up to 40 classes carry their names, up to 20 the share in percent; beyond that the plot is
    about where confusions cluster.
    """
    from matplotlib.colors import PowerNorm

    count = len(names)
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 4.5 + 0.22 * min(count, _NAMED_UP_TO)
    with drawing(path, figsize=(side + 1, side), layout="constrained") as figure:
        axes = figure.subplots()
        shades = PowerNorm(gamma=0.5, vmin=0, vmax=100)  # so that a few percent can be seen
        image = axes.imshow(shares, cmap="Blues", norm=shades, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
        axes.set(
            xlabel="predicted", ylabel="true", title=f"Confusion, {int(confusion.sum()):,} images"
        )
        if count <= _NAMED_UP_TO:
            short = [words(name, 20) for name in names]
            is_long = max(map(len, short)) > 2
            axes.set_xticks(range(count), short, rotation=90 if is_long else 0)
            axes.set_yticks(range(count), short)
        if count <= _NUMBERED_UP_TO:
            style = {"ha": "center", "va": "center", "fontsize": 8}
            for row, column in zip(*np.nonzero(shares), strict=True):
                share = shares[row, column]
                colour = "white" if share > 30 else "black"
                axes.text(column, row, f"{share:.0f}", color=colour, **style)


# --- The reliability diagram: how often a model is right, by how sure it is.

_TOO_SURE, _TOO_MODEST = "#d1495b", "#edae49"


def save_reliability(path: Path, answers: Reliability) -> None:
    """Draws accuracy against confidence, bin by bin, over a histogram of the confidences.

    A dot on the diagonal is a calibrated bin; the hatched gap between its accuracy and its mean
    confidence is what the calibration error adds up, and the colour tells the direction.
    """
    count = int(answers.counts.sum())
    title = f"Reliability, {count:,} images: calibration error {100 * answers.ece:.2f} %"
    with drawing(path, figsize=(5.6, 6.8), layout="constrained") as figure:
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
