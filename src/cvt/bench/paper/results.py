"""What an ablation came to: counts and accuracies of its variants beside the paper's."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cvt import tables as markdown
from cvt.bench.contest.results import ContenderResult, ContestResults
from cvt.bench.paper.ablation import Ablation, Variant
from cvt.bench.paper.tables import PAPER, PaperLine, say_gmacs
from cvt.figures import drawing, if_possible, words
from cvt.files import atomic_write
from cvt.tables import Table, write_csv
from cvt.zoo.describe import describe

# --- What one network has over another: paired over seeds, with its uncertainty.

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean over seeds of differences within a seed, in percentage points.

    Runs with the same seed see the same images in the same order, so their difference is less
    noisy than the accuracies are. The interval covers the seeds alone: another draw of test
    images is not in it. With one seed there is none.

    Args:
        per_seed: The differences, by seed.
        standard_error: Standard deviation of those (n - 1) over the root of n.
        half_width: Of Student's 95 % interval around the mean.
    """

    mean: float
    per_seed: Mapping[int, float]
    standard_error: float | None = None
    half_width: float | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether the interval leaves out 0, so that the sign is more than chance."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "mean": self.mean,
            "per_seed": {str(seed): value for seed, value in self.per_seed.items()},
            "standard_error": self.standard_error,
            "half_width": self.half_width,
            "confidence": CONFIDENCE,
            "resolved": self.is_resolved,
        }


def paired_difference(
    ours: Mapping[int, float], reference: Mapping[int, float]
) -> Difference | None:
    """Subtracts accuracies of the same seed; None where no seed has both.

    Args:
        ours: Top-1 in percent by seed.
        reference: The same of what it is compared with.
    """
    from scipy import stats

    per_seed = {seed: ours[seed] - reference[seed] for seed in sorted(ours) if seed in reference}
    if not per_seed:
        return None
    values = list(per_seed.values())
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Difference(mean=mean, per_seed=per_seed)
    # Not by `ttest_rel`, whose interval is nan where all seeds agree.
    error = float(stats.sem(values))
    width = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Difference(mean=mean, per_seed=per_seed, standard_error=error, half_width=width)


def compare_signs(ours: Difference, published: float) -> str:
    """Says whether a difference has the sign of the paper's, as far as seeds can tell."""
    same = ours.mean * published > 0 or ours.mean == published == 0
    words = "same sign" if same else "opposite sign" if ours.mean * published < 0 else "no sign"
    if ours.half_width is None:
        return f"{words}, one seed"
    return words if ours.is_resolved else f"{words}, not resolved"


# --- From counts and runs to a line of a table.


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """A line of an ablation.

    Args:
        num_params: With the classes it was trained for, else those of its row.
        macs: For one image of the size that it was trained at, else that of its row.
        trained: What was measured of it, where it was trained.
        difference: Its top-1 minus the reference's, over seeds; None for the reference itself,
            and where no seed has both.
    """

    ablation: Ablation
    variant: Variant
    num_params: int
    macs: int
    trained: ContenderResult | None = None
    difference: Difference | None = None

    @property
    def is_reference(self) -> bool:
        """Whether the others are compared with it."""
        return self.variant is self.ablation.reference

    @property
    def words(self) -> str:
        """What the first column says."""
        return f"{self.variant.words}{' (reference)' if self.is_reference else ''}"

    @property
    def published_top1(self) -> float | None:
        """In the paper, on its own base."""
        return self.variant.published.top1

    @property
    def counts(self) -> PaperLine:
        """The paper's parameters and GMACs, where they hold for this base."""
        return self.variant.published if self.ablation.is_papers_own else PaperLine()

    @property
    def published_difference(self) -> float | None:
        """The paper's top-1 minus that of its reference, in percentage points."""
        ours, reference = self.published_top1, self.ablation.reference.published.top1
        if self.is_reference or ours is None or reference is None:
            return None
        return round(ours - reference, 6)

    @property
    def signs(self) -> str | None:
        """Whether the two differences have the same sign, in words."""
        if self.difference is None or self.published_difference is None:
            return None
        return compare_signs(self.difference, self.published_difference)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        contender, trained = self.variant.contender, self.trained
        top1 = trained.top1 if trained else None
        plain = {
            "table": self.ablation.table,
            "base": self.ablation.base.label,
            "variant": self.variant.words,
            "reference": self.is_reference,
            "label": contender.label,
            "model": contender.model,
            "model_args": contender.model_args,
            "num_params": self.num_params,
            "macs": self.macs,
            "paper_params": self.counts.params,
            "paper_gmacs": self.counts.gmacs,
            "paper_top1": self.published_top1,
            "paper_difference": self.published_difference,
            "top1": top1.mean if top1 else None,
            "top1_std": top1.std if top1 else None,
            "scores": trained.scores if trained else None,
            "errors": trained.errors or None if trained else None,
            "difference": self.difference.to_dict() if self.difference else None,
            "signs": self.signs,
        }
        return {name: value for name, value in plain.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """A table of the paper, counted or trained."""

    ablation: Ablation
    variants: tuple[VariantResult, ...]

    @property
    def table(self) -> Table:
        """Counts, or our differences with their uncertainty, beside the paper's."""
        trained = [each.trained for each in self.variants if each.trained]
        notes = list(self.ablation.notes)
        if not trained and not self.ablation.is_papers_own:
            notes.append("Printed accuracies are of the paper's own base, not of this one.")
        notes += [
            f"{each.label}, seed {seed}, failed: {error}"
            for each in trained
            for seed, error in each.errors.items()
        ]
        columns = {**_COLUMNS, **(_OF_TRAINED if trained else _OF_COUNTED)}
        return Table.of(self.variants, columns, self.ablation.title, tuple(notes))


def count(ablation: Ablation) -> AblationResult:
    """Counts an ablation's variants at the base's image size; nothing is trained."""
    counted = [describe(each.contender.model, spec=each.spec) for each in ablation.variants]
    found = [
        VariantResult(
            ablation=ablation, variant=variant, num_params=each.num_params, macs=each.macs
        )
        for variant, each in zip(ablation.variants, counted, strict=True)
    ]
    return AblationResult(ablation=ablation, variants=tuple(found))


def judge(ablation: Ablation, results: ContestResults) -> AblationResult:
    """Puts what was trained beside the paper: differences to the reference, paired over seeds."""
    trained = [results.of(variant.contender.label) for variant in ablation.variants]
    reference = results.of(ablation.reference.contender.label)
    found = [
        VariantResult(
            ablation=ablation,
            variant=variant,
            num_params=each.num_params,
            macs=each.macs,
            trained=each,
            difference=None
            if each is reference
            else paired_difference(each.scores, reference.scores),
        )
        for variant, each in zip(ablation.variants, trained, strict=True)
    ]
    return AblationResult(ablation=ablation, variants=tuple(found))


# --- As it is printed.


def _say_points(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2f}".replace("+0.00", "0.00")


def _say_top1(result: VariantResult) -> str | None:
    top1 = result.trained.top1 if result.trained else None
    if top1 is None:
        return None
    return f"{top1.mean:.2f}" + ("" if top1.std is None else f" ± {top1.std:.2f}")


def _say_interval(result: VariantResult) -> str | None:
    difference = result.difference
    if difference is None:
        return None
    if difference.half_width is None:
        return "one seed"
    low, high = (difference.mean + sign * difference.half_width for sign in (-1, 1))
    count = len(difference.per_seed)
    missing = result.trained is not None and count < len(result.trained.runs)
    return f"{low:+.2f} to {high:+.2f}" + (f" ({count} seeds)" if missing else "")


_Columns = dict[str, str | Callable[[VariantResult], object]]
_COLUMNS: _Columns = {
    "Variant": "words",
    "Changes": lambda each: each.variant.contender.label.partition("+")[2] or "the row itself",
    "Parameters": "num_params:,",
}
_OF_COUNTED: _Columns = {
    "GMACs": lambda each: say_gmacs(each.macs),
    "Printed M": lambda each: each.counts.params,
    "Printed GFLOPs": lambda each: each.counts.gmacs,
    "Printed top-1 %": "published_top1:.1f",
    "Points to reference": lambda each: _say_points(each.published_difference),
}
_OF_TRAINED: _Columns = {
    "MMACs": lambda each: f"{each.macs / 1e6:,.1f}",
    "Top-1 %": _say_top1,
    "Points to reference": lambda each: (
        _say_points(each.difference.mean) if each.difference else None
    ),
    "95 % interval": _say_interval,
    "Paper's points": lambda each: _say_points(each.published_difference),
    "Signs": "signs",
}


# --- What trained ablations leave in their results folder: tables, a line a variant, a plot.

NAME = "ablation"
_LINE = ("table", "base", "variant", "reference", "label", "model", "model_args", "num_params",
         "macs", "paper_params", "paper_gmacs", "paper_top1", "paper_difference", "seeds",
         "top1", "top1_std", "difference", "standard_error", "half_width", "resolved",
         "signs", "scores")  # fmt: skip


def legend(results: ContestResults) -> tuple[str, ...]:
    """Returns what has to be said once about all differences, and about the runs."""
    seeds = max((len(each.scores) for each in results.contenders), default=0)
    if seeds == 1:
        said = "One seed says nothing about how far chance reaches: no sign here is a finding."
        return (said, *results.notes)
    return (
        f"Points are percentage points of top-1, paired over {seeds} seeds; the interval is "
        "Student's, over seeds alone. One that contains 0 resolves no sign.",
        f"The paper's points are of one run each on ImageNet ({PAPER}).",
        *results.notes,
    )


def write_report(
    folder: Path, ablations: Sequence[AblationResult], results: ContestResults
) -> None:
    """Writes `ablation.md`, `ablation.csv` (accuracies not rounded) and `ablation.png`."""
    title = f"Ablations on {results.title}"
    lines = [f"# {markdown.text(title)}\n", f"![Differences and their intervals]({NAME}.png)\n"]
    lines += [each.table.to_markdown() for each in ablations]
    lines.append("".join(f"- {markdown.text(note)}\n" for note in legend(results)))
    with atomic_write(folder / f"{NAME}.md", "w") as file:
        file.write("\n".join(lines))
    variants = chain.from_iterable(each.variants for each in ablations)
    write_csv(folder / f"{NAME}.csv", _LINE, map(_line, variants))
    with if_possible():
        save_ablations(folder / f"{NAME}.png", ablations, title)


def _line(result: VariantResult) -> dict[str, Any]:
    plain = result.to_dict()
    scores, difference = plain.get("scores"), plain.pop("difference", {})
    plain |= {
        "model_args": json.dumps(plain["model_args"]),
        "seeds": len(scores) if scores else None,
        "scores": json.dumps(scores) if scores else None,
        "difference": difference.get("mean"),
    }
    return {name: {**difference, **plain}.get(name) for name in _LINE}


# --- The plot: each variant's difference with its interval, and the paper's.

# An axis ends there, in units of the farthest dot; what goes on beyond has an arrow.
_FARTHEST = 2.5
_OURS, _PAPER, _SEED = "#1f77b4", "#d1495b", "#08306b"


def save_ablations(path: Path, ablations: Sequence[AblationResult], title: str) -> None:
    """Draws a panel a table into a PNG: points of top-1 against the reference.

    A bar is Student's 95 % interval over seeds, its dot filled where it leaves out 0;
    ticks on it are single seeds; a diamond is what the paper prints.
    """
    heights = [len(each.variants) + 0.9 for each in ablations]
    size = (8.4, 1.2 + 0.42 * sum(heights))
    with drawing(path, figsize=size, layout="constrained") as figure:
        panels = figure.subplots(
            len(ablations), 1, sharex=True, squeeze=False, height_ratios=heights
        )[:, 0]
        edge = _edge([each for result in ablations for each in result.variants])
        marks: dict[str, Any] = {}  # every kind once, whichever panel has it
        for axes, result in zip(panels, ablations, strict=True):
            _draw_panel(axes, result, edge)
            handles, labels = axes.get_legend_handles_labels()
            marks |= dict(zip(labels, handles, strict=True))
        panels[-1].set_xlabel("top-1 against the reference (percentage points)")
        names = sorted(marks, key=lambda label: (label.startswith("paper"), label))
        figure.legend(
            [marks[name] for name in names], names,
            loc="outside lower center", ncols=2, frameon=False, fontsize=9,
        )  # fmt: skip
        figure.suptitle(words(title, 100), fontsize=11)


def _edge(results: Sequence[VariantResult]) -> float | None:
    """Where to cut intervals that would press all points into one: with two seeds they do."""
    dots, ends = [0.0], [0.0]
    for result in results:
        dots.append(abs(result.published_difference or 0.0))
        if result.difference is not None:
            dots += map(abs, result.difference.per_seed.values())
            ends.append(abs(result.difference.mean) + (result.difference.half_width or 0.0))
    edge = _FARTHEST * max(dots)
    return edge if max(ends) > edge else None


def _draw_panel(axes: Any, result: AblationResult, edge: float | None) -> None:
    axes.axvline(0, color="0.4", linewidth=1)
    for row, each in enumerate(result.variants):
        if each.is_reference:
            axes.plot(0, row, "|", color="0.2", markersize=14, markeredgewidth=2.5)
        elif each.difference is None:
            axes.text(0, row, "  not trained", color="0.4", va="center", fontsize=9)
        else:
            _draw_difference(axes, row - 0.2, each.difference, edge)
        if each.published_difference is not None:
            axes.plot(
                each.published_difference, row + 0.2, "D", color=_PAPER, markersize=6,
                markerfacecolor="white", markeredgewidth=1.6, label="paper, ImageNet", zorder=4,
            )  # fmt: skip
    count = len(result.variants)
    axes.set_yticks(range(count), [words(each.words) for each in result.variants])
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_title(result.ablation.title, fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if edge is not None:
        axes.set_xlim(-edge, edge)


def _draw_difference(axes: Any, height: float, ours: Difference, edge: float | None) -> None:
    if ours.half_width is not None:
        axes.errorbar(
            ours.mean, height, xerr=ours.half_width, color=_OURS, elinewidth=1.8, capsize=3,
            zorder=2,
        )  # fmt: skip
        axes.plot(
            [*ours.per_seed.values()], [height] * len(ours.per_seed), "|", color=_SEED,
            markersize=9, markeredgewidth=1.4, label="one seed", zorder=2.5,
        )  # fmt: skip
    words = "and 95 % interval" if ours.half_width is not None else "in one seed"
    axes.plot(
        ours.mean, height, "s" if ours.half_width is None else "o", color=_OURS, markersize=6,
        label=f"ours {words}, sign {'' if ours.is_resolved else 'not '}resolved", zorder=3,
        markerfacecolor=_OURS if ours.is_resolved else "white", markeredgewidth=1.6,
    )  # fmt: skip
    for sign, arrow in ((-1, "<"), (1, ">")):
        if edge is not None and sign * ours.mean + (ours.half_width or 0.0) > edge:
            axes.plot(sign * edge, height, arrow, color=_OURS, clip_on=False)
