"""The figures of an evaluation, from logits and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np

from cvt.evaluation.answers import Guesses, Logits
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
        split = "" if self.split in (None, "all") else str(self.split)
        save_confusion(Path(path), self.confusion, [each.name for each in self.per_class], split)

    def save_reliability(self, path: str | Path) -> None:
        """Draws accuracy against confidence, with the calibration error."""
        save_reliability(Path(path), self.reliability)


def summarise(answers: Logits, class_names: Sequence[str]) -> Evaluation:
    """Returns the figures of a model's answers; `class_names` are those of its outputs."""
    guesses, num_classes = answers.guesses(), len(class_names)
    confusion = guesses.confusion(num_classes)
    bins = reliability(guesses.confidences, guesses.classes == guesses.labels)
    return Evaluation(
        top1=answers.top_k(1),
        top5=answers.top_k(5) if num_classes > 5 else None,
        loss=answers.loss(),
        ece=bins.ece,
        reliability=bins,
        num_images=len(guesses.labels),
        bad=answers.bad,
        per_class=class_scores(guesses, class_names),
        confusion=confusion,
    )


def class_scores(guesses: Guesses, names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Returns the figures of every class."""

    def share(hits: int, total: int) -> float | None:
        return 100 * hits / total if total else None

    hits = guesses.labels[guesses.classes == guesses.labels]
    right, truly, named = (
        np.bincount(each, minlength=len(names)) for each in (hits, guesses.labels, guesses.classes)
    )
    return tuple(
        ClassScore(
            name=name,
            num_images=int(truly[index]),
            accuracy=share(int(right[index]), int(truly[index])),
            precision=share(int(right[index]), int(named[index])),
        )
        for index, name in enumerate(names)
    )


# --- The confusion matrix, drawn: what is right in blue, what is wrong in orange.

_NAMED_UP_TO = 50
_NUMBERED_UP_TO = 20
_LISTED = 12
_LEAST_SHADE = 0.12  # of a colour map: of what happened at all, the palest shade can be seen
_INK, _FAINT = "#1a1d21", "#5f6670"


def save_confusion(
    path: Path, confusion: np.ndarray, names: Sequence[str], split: str = ""
) -> None:
    """Draws an (N, N) matrix as shares of its rows, in the format of the path's suffix.

    Up to 50 classes carry their names and how many images each has, up to 20 every share in
    percent. Of more classes the twelve most frequent confusions are listed by name.
    """
    count = len(names)
    totals = confusion.sum(axis=1)
    shares = 100 * confusion / np.maximum(totals, 1)[:, None]
    is_named, is_numbered = count <= _NAMED_UP_TO, count <= _NUMBERED_UP_TO
    cell = 0.36 if is_numbered else 0.2
    side = max(cell * count, 2.2) if is_named else 5.6
    margin = 0.085 * max(map(_cells, (words(name, 20) for name in names))) if is_named else 0.3
    width = side + margin + (1.1 if is_numbered else 2.2)
    height = side + 1.2 + (margin if is_named else 2.7)
    with drawing(path, figsize=(max(width, 4.6), height), layout="constrained") as figure:
        axes = figure.subplots() if is_named else None
        if axes is None:
            axes, below = figure.subplots(2, 1, height_ratios=(side, 2.6))
            _list_confusions(below, confusion, totals, names)
        _colour(figure, axes, shares, has_scale=not is_numbered)
        _name(axes, names, totals) if is_named else axes.set(xticks=[], yticks=[])
        if is_numbered:
            _number(axes, shares)
        axes.set_xlabel("what the model said", color=_INK)
        axes.set_ylabel("what is true (images)" if is_named else "what is true", color=_INK)
        of = f"{int(confusion.sum()):,} {split} images".replace("  ", " ")
        right = f"{np.trace(confusion) / max(confusion.sum(), 1):.1%}"
        figure.suptitle(f"Confusion of {count} classes, {of}", fontsize=11, weight="bold")
        told = f"each row adds up to 100 %\nblue: right ({right} in all), orange: wrong"
        axes.set_title(told, fontsize=9, color=_FAINT)


def _cells(text: str) -> int:
    """How wide a text is, in letters: those of East Asia are as wide as two."""
    return sum(1 + (east_asian_width(each) in "WF") for each in text)


def _colour(figure: Any, axes: Any, shares: np.ndarray, has_scale: bool) -> None:
    """Colours the cells; both scales are straight, so that a share twice as large looks it."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    is_right = np.eye(len(shares), dtype=bool)
    for label, name, chosen in (("right", "Blues", is_right), ("wrong", "Oranges", ~is_right)):
        shades = ListedColormap(colormaps[name](np.linspace(_LEAST_SHADE, 1, 256)))
        values = np.ma.masked_array(shares, ~chosen | (shares == 0))
        image = axes.imshow(values, cmap=shades, vmin=0, vmax=100, interpolation="nearest")
        if has_scale:
            scale = figure.colorbar(image, ax=axes, shrink=0.4, aspect=18, pad=0.015)
            scale.set_label(f"{label}, % of the row", fontsize=8)
            scale.ax.tick_params(labelsize=8)
    axes.set_facecolor("#f4f5f6" if has_scale else "white")
    axes.spines[:].set_color("#c9cdd2")


def _name(axes: Any, names: Sequence[str], totals: np.ndarray) -> None:
    short = [words(name, 20) for name in names]
    size = 9 if len(names) <= _NUMBERED_UP_TO else 8
    is_long = max(map(len, short)) > 2
    axes.set_xticks(range(len(names)), short, rotation=90 if is_long else 0, fontsize=size)
    rows = [f"{name}  ({total:,})" for name, total in zip(short, totals, strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(names)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names)) + 0.5, minor=True)
    axes.grid(which="minor", color="#e3e6e9", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def _number(axes: Any, shares: np.ndarray) -> None:
    style = {"ha": "center", "va": "center", "fontsize": 9}
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        text = f"{share:.0f}" if share >= 0.5 else "<1"
        axes.text(column, row, text, color="white" if share > 55 else _INK, **style)


def _list_confusions(
    axes: Any, confusion: np.ndarray, totals: np.ndarray, names: Sequence[str]
) -> None:
    """Names what is confused most often, as the matrix is too large for names."""
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    first = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    rows, columns = np.unravel_index(first, wrong.shape)
    found = [pair for pair in zip(rows, columns, strict=True) if wrong[pair]]
    axes.axis("off")
    lines = [
        f"{wrong[i, j]:>3,} of {totals[i]:,}  {words(names[i], 26)} → {words(names[j], 26)}"
        for i, j in found
    ]
    head = (
        f"{len(names):,} names have no room there; the most frequent of "
        f"{np.count_nonzero(wrong):,} confusions (true → said):"
    )
    axes.text(0, 1, "\n".join([head, *lines]), va="top", fontsize=9, color=_INK, linespacing=1.4)


# --- The reliability diagram: how often a model is right, by how sure it is.

_TOO_SURE, _TOO_MODEST = "#d1495b", "#edae49"
_FEW = 30  # answers of a bin, fewer of which say little
_PALEST = 0.2


def save_reliability(path: Path, answers: Reliability) -> None:
    """Draws accuracy against confidence, bin by bin, over a histogram of the confidences.

    A dot on the diagonal is a calibrated bin; the hatched gap between its accuracy and its mean
    confidence is what the calibration error adds up, and the colour tells the direction. A bin
    of fewer than thirty images fades; how many each has stands over the histogram.
    """
    count = int(answers.counts.sum())
    title = f"Reliability, {count:,} images: calibration error {100 * answers.ece:.2f} %"
    with drawing(path, figsize=(5.6, 6.8), layout="constrained") as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.1))
        _draw_bins(upper, answers)
        _draw_histogram(lower, answers)
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        upper.set_title(title, fontsize=11, weight="bold")


def _strengths(counts: np.ndarray) -> np.ndarray:
    """How strong the colours of bins with so many answers are, 0 to 1."""
    return np.clip(counts / _FEW, _PALEST, 1)


def _draw_bins(axes: Any, answers: Reliability) -> None:
    filled = np.flatnonzero(answers.counts)
    lefts, width = 100 * answers.edges[filled], 100 / len(answers.counts)
    accuracy, confidence = 100 * answers.accuracy[filled], 100 * answers.confidence[filled]
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    strengths = _strengths(answers.counts[filled])
    bars = axes.bar(lefts, low, width, align="edge", color="C0", edgecolor="white")
    _fade(bars, strengths)
    for label, colour, chosen in (
        ("accuracy short of confidence", _TOO_SURE, confidence > accuracy),
        ("accuracy beyond confidence", _TOO_MODEST, confidence < accuracy),
    ):
        gap = (high - low)[chosen]
        bars = axes.bar(
            lefts[chosen], gap, width, low[chosen], align="edge", facecolor=f"{colour}55",
            edgecolor=colour, hatch="///", linewidth=0.8,
        )  # fmt: skip
        _fade(bars, strengths[chosen])
        axes.bar([0], [0], facecolor=f"{colour}55", edgecolor=colour, hatch="///", label=label)
    axes.scatter(
        confidence, accuracy, 16, color="black", alpha=strengths, clip_on=False, zorder=3,
        label="mean of a bin",
    )  # fmt: skip
    axes.plot([0, 100], [0, 100], "--", color="0.35", linewidth=1.2, label="calibrated")
    if strengths.min() < 1:
        axes.plot([], [], " ", label=f"faded: fewer than {_FEW} images")
    axes.set(xlim=(0, 100), ylim=(0, 101), ylabel="accuracy (%)")
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _fade(bars: Any, strengths: np.ndarray) -> None:
    for bar, strength in zip(bars, strengths, strict=True):
        for get, put in (
            (bar.get_facecolor, bar.set_facecolor),
            (bar.get_edgecolor, bar.set_edgecolor),
        ):
            *colour, alpha = get()
            put((*colour, alpha * strength))


def _draw_histogram(axes: Any, answers: Reliability) -> None:
    """Shares of the answers, counted, with the two means whose distance is the overall bias."""
    total = answers.counts.sum()
    shares, width = 100 * answers.counts / total, 100 / len(answers.counts)
    bars = axes.bar(
        100 * answers.edges[:-1], shares, width, align="edge", color="0.75", edgecolor="white"
    )
    counts = [f"{count:,}" if count else "" for count in answers.counts]
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for text in axes.bar_label(bars, counts, fontsize=7, padding=1.5):
        text.set(bbox=plate if text.get_text() else None, zorder=5)
    means = (
        ("accuracy", "C0", "-", 100 * answers.hits.sum() / total),
        ("mean confidence", _TOO_SURE, ":", 100 * answers.confidences.sum() / total),
    )
    for label, colour, style, mean in means:
        axes.axvline(
            mean, color=colour, linestyle=style, linewidth=1.8, label=f"{label} {mean:.1f} %"
        )
    axes.set(xlabel="confidence (%)", ylabel="% of images")
    axes.margins(y=0.18)
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
