"""What an ablation came to: counts and accuracies of its variants beside the paper's."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt import tables as markdown
from cvt.bench.contest.results import Results, Standing, say_contest
from cvt.bench.names import Contender
from cvt.bench.paper.ablation import Ablation, Variant
from cvt.bench.paper.tables import PAPER
from cvt.bench.tables import Block, say_gmacs, say_number
from cvt.figures import drawing, if_possible, words
from cvt.files import atomic_write
from cvt.zoo.describe import describe

# --- What one network has over another: paired over seeds, with its uncertainty.

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean over seeds of differences within a seed, in percentage points.

    Runs with the same seed see the same pictures in the same order, so their difference is less
    noisy than the accuracies are. The interval covers the seeds alone: another draw of test
    pictures is not in it. With one seed there is none.

    Args:
        per_seed: The differences, by seed.
        standard_error: Standard deviation of those (n - 1) over the root of n.
        half_width: Of Student's 95 % interval around the mean.
    """

    mean: float
    per_seed: Mapping[int, float]
    standard_error: float | None
    half_width: float | None

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
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    per_seed = {seed: ours[seed] - reference[seed] for seed in seeds}
    count, mean = len(seeds), math.fsum(per_seed.values()) / len(seeds)
    if count == 1:
        return Difference(mean=mean, per_seed=per_seed, standard_error=None, half_width=None)
    variance = math.fsum((each - mean) ** 2 for each in per_seed.values()) / (count - 1)
    error = math.sqrt(variance / count)
    return Difference(
        mean=mean,
        per_seed=per_seed,
        standard_error=error,
        half_width=error * _student(count - 1),
    )


def compare_signs(ours: Difference, published: float) -> str:
    """Says whether a difference has the sign of the paper's, as far as seeds can tell."""
    same = ours.mean * published > 0 or ours.mean == published == 0
    words = "same sign" if same else "opposite sign" if ours.mean * published < 0 else "no sign"
    if ours.half_width is None:
        return f"{words}, one seed"
    return words if ours.is_resolved else f"{words}, not resolved"


def _student(freedom: int) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # comes with scikit-learn

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line of an ablation.

    Args:
        num_params: With the classes it was trained for, else those of its row.
        macs: For one image of the size that it was trained at, else that of its row.
        standing: What was measured of it, where it was trained.
        difference: Its top-1 minus the reference's, over seeds; None for the reference itself,
            and where no seed has both.
        printed_difference: The same in the paper.
        signs: Whether the two have the same sign, in words.
    """

    ablation: Ablation
    variant: Variant
    num_params: int
    macs: int
    standing: Standing | None = None
    difference: Difference | None = None
    printed_difference: float | None = None
    signs: str = ""

    @property
    def is_reference(self) -> bool:
        """Whether the others are compared with it."""
        return self.variant is self.ablation.reference

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        printed, standing = self.variant.printed, self.standing
        top1 = standing.top1 if standing else None
        own = printed if self.ablation.is_papers_own else None
        plain = {
            "table": self.ablation.table,
            "base": self.ablation.base.label,
            "variant": self.variant.words,
            "reference": self.is_reference,
            "label": self.variant.contender.label,
            "model": self.variant.contender.model,
            "model_args": self.variant.contender.model_args,
            "num_params": self.num_params,
            "macs": self.macs,
            "paper_params": own.params if own else None,
            "paper_gmacs": own.gmacs if own else None,
            "paper_top1": printed.top1 if printed else None,
            "paper_difference": self.printed_difference,
            "top1": top1.mean if top1 else None,
            "top1_std": top1.std if top1 else None,
            "scores": standing.scores if standing else None,
            "errors": standing.errors or None if standing else None,
            "difference": self.difference.to_dict() if self.difference else None,
            "signs": self.signs or None,
        }
        return {name: value for name, value in plain.items() if value is not None}


def contenders_of(ablations: Sequence[Ablation]) -> list[Contender]:
    """Returns every network that the ablations need, each of them once, in their order."""
    found = {
        variant.contender.label: variant.contender
        for ablation in ablations
        for variant in ablation.variants
    }
    return list(found.values())


def count(ablation: Ablation) -> list[Finding]:
    """Counts an ablation's variants at the base's image size; nothing is trained."""
    found = []
    for variant in ablation.variants:
        counted = describe(variant.contender.model, spec=variant.spec)
        found.append(
            Finding(
                ablation=ablation,
                variant=variant,
                num_params=counted.num_params,
                macs=counted.macs,
                printed_difference=_printed(ablation, variant),
            )
        )
    return found


def judge(ablation: Ablation, results: Results) -> list[Finding]:
    """Puts what was trained beside the paper: differences to the reference, paired over seeds."""
    reference = results.of(ablation.reference.contender.label)
    found = []
    for variant in ablation.variants:
        standing = results.of(variant.contender.label)
        difference = None
        if variant is not ablation.reference:
            difference = paired_difference(standing.scores, reference.scores)
        printed = _printed(ablation, variant)
        signs = ""
        if difference is not None and printed is not None:
            signs = compare_signs(difference, printed)
        found.append(
            Finding(
                ablation=ablation,
                variant=variant,
                num_params=standing.num_params,
                macs=standing.macs,
                standing=standing,
                difference=difference,
                printed_difference=printed,
                signs=signs,
            )
        )
    return found


_COLUMNS = ("table", "base", "variant", "reference", "label", "model", "model_args", "num_params",
            "macs", "paper_params", "paper_gmacs", "paper_top1", "paper_difference", "seeds",
            "top1", "top1_std", "difference", "standard_error", "half_width", "resolved",
            "signs", "scores")  # fmt: skip


def write_csv(path: Path, findings: Sequence[Finding]) -> None:
    """Writes a line a variant; accuracies and differences in percent and points, not rounded.

    Raises:
        UserError: The file cannot be written.
    """
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for finding in findings:
            plain = finding.to_dict()
            difference = plain.pop("difference", {})
            scores = plain.pop("scores", {})
            writer.writerow(
                {
                    **plain,
                    "model_args": json.dumps(plain["model_args"]),
                    "seeds": len(scores) or "",
                    "scores": json.dumps(scores) if scores else "",
                    "difference": difference.get("mean"),
                    "standard_error": difference.get("standard_error"),
                    "half_width": difference.get("half_width"),
                    "resolved": difference.get("resolved"),
                }
            )


def _printed(ablation: Ablation, variant: Variant) -> float | None:
    return None if variant is ablation.reference else ablation.printed_difference(variant)


# --- Ablations as tables for people.


def counted_block(findings: Sequence[Finding]) -> Block:
    """Returns counts beside what the paper prints, for variants that nobody trained here."""
    ablation = findings[0].ablation
    columns = ("Variant", "Changes", "Parameters", "GMACs", "Printed M", "Printed GFLOPs",
               "Printed top-1 %", "Points to reference")  # fmt: skip
    rows = []
    for finding in findings:
        printed = finding.variant.printed
        own = printed if ablation.is_papers_own else None
        rows.append(
            (
                _words(finding),
                finding.variant.contender.label.partition("+")[2] or "the row itself",
                f"{finding.num_params:,}",
                say_gmacs(finding.macs),
                say_number(own.params if own else None),
                say_number(own.gmacs if own else None),
                say_number(printed.top1 if printed else None, 1),
                _points(finding.printed_difference),
            )
        )
    return Block(title=_title(findings), columns=columns, rows=tuple(rows), notes=_notes(findings))


def trained_block(findings: Sequence[Finding]) -> Block:
    """Returns our differences beside the paper's, with their uncertainty."""
    columns = ("Variant", "Changes", "Parameters", "MMACs", "Top-1 %", "Points to reference",
               "95 % interval", "Paper's points", "Signs")  # fmt: skip
    rows = []
    for finding in findings:
        difference = finding.difference
        rows.append(
            (
                _words(finding),
                finding.variant.contender.label.partition("+")[2] or "the row itself",
                f"{finding.num_params:,}",
                f"{finding.macs / 1e6:,.1f}",
                _accuracy(finding),
                _points(difference.mean if difference else None),
                _interval(finding),
                _points(finding.printed_difference),
                finding.signs or "-",
            )
        )
    return Block(
        title=_title(findings),
        columns=columns,
        rows=tuple(rows),
        notes=(*_notes(findings), *_failures(findings)),
    )


def legend(num_seeds: int) -> tuple[str, ...]:
    """Returns what has to be said once about differences from so many seeds."""
    if num_seeds == 1:
        return ("One seed says nothing about how far chance reaches: no sign here is a finding.",)
    return (
        f"Points are percentage points of top-1, paired over {num_seeds} seeds; the interval is "
        "Student's, over seeds alone. One that contains 0 resolves no sign.",
        f"The paper's points are of one run each on ImageNet ({PAPER}).",
    )


def _title(findings: Sequence[Finding]) -> str:
    ablation = findings[0].ablation
    return f"Table {ablation.table}: {ablation.title}, on {ablation.base.label}"


def _notes(findings: Sequence[Finding]) -> tuple[str, ...]:
    ablation = findings[0].ablation
    if ablation.is_papers_own or any(finding.standing for finding in findings):
        return ablation.notes
    return (
        *ablation.notes,
        "Printed accuracies are of the paper's own base, not of this one.",
    )


def _words(finding: Finding) -> str:
    return f"{finding.variant.words} (reference)" if finding.is_reference else finding.variant.words


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}".replace("+0.00", "0.00")


def _accuracy(finding: Finding) -> str:
    top1 = finding.standing.top1 if finding.standing else None
    if top1 is None:
        return "-"
    return f"{top1.mean:.2f}" + ("" if top1.std is None else f" ± {top1.std:.2f}")


def _interval(finding: Finding) -> str:
    difference = finding.difference
    if difference is None:
        return "-"
    if difference.half_width is None:
        return "one seed"
    low, high = (difference.mean + sign * difference.half_width for sign in (-1, 1))
    missing = len(finding.standing.runs) - len(difference.per_seed) if finding.standing else 0
    of = f" ({len(difference.per_seed)} seeds)" if missing else ""
    return f"{low:+.2f} to {high:+.2f}{of}"


def _failures(findings: Sequence[Finding]) -> list[str]:
    return [
        f"{finding.variant.contender.label}, seed {seed}, failed: {error}"
        for finding in findings
        if finding.standing
        for seed, error in finding.standing.errors.items()
    ]


# --- The picture of ablations: each variant's difference with its interval, and the paper's.

# An axis ends there, in units of the farthest dot; what goes on beyond has an arrow.
_FARTHEST = 2.5
_OURS, _PAPER, _SEED = "#1f77b4", "#d1495b", "#08306b"


def save_ablation(path: Path, tables: Sequence[Sequence[Finding]], title: str) -> None:
    """Draws a panel a table into a PNG: points of top-1 against the reference.

    A bar is Student's 95 % interval over seeds, its dot filled where it leaves out 0;
    ticks on it are single seeds; a diamond is what the paper prints.

    Raises:
        UserError: The file cannot be written.
    """
    heights = [len(findings) + 0.9 for findings in tables]
    size = (8.4, 1.2 + 0.42 * sum(heights))
    with drawing(path, figsize=size, layout="constrained") as figure:
        _fill(figure, tables, heights)
        figure.suptitle(words(title, 100), fontsize=11)


def _fill(figure: Any, tables: Sequence[Sequence[Finding]], heights: Sequence[float]) -> None:
    panels = list(
        figure.subplots(len(tables), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    )
    for axes, findings in zip(panels, tables, strict=True):
        _draw(axes, findings)
    _keep_in_sight(panels, tables)
    panels[-1].set_xlabel("top-1 against the reference (percentage points)")
    handles, labels = _legend(panels)
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _draw(axes: Any, findings: Sequence[Finding]) -> None:
    ablation = findings[0].ablation
    axes.axvline(0, color="0.4", linewidth=1)
    for row, finding in enumerate(findings):
        if finding.is_reference:
            axes.plot(0, row, "|", color="0.2", markersize=14, markeredgewidth=2.5)
            continue
        _draw_ours(axes, row, finding)
        if finding.printed_difference is not None:
            axes.plot(
                finding.printed_difference, row + 0.2, "D", color=_PAPER, markersize=6,
                markerfacecolor="white", markeredgewidth=1.6, label="paper, ImageNet", zorder=4,
            )  # fmt: skip
    names = [
        f"{words(each.variant.words)}{' (reference)' if each.is_reference else ''}"
        for each in findings
    ]
    axes.set_yticks(range(len(findings)), names)
    axes.set_ylim(len(findings) - 0.4, -0.6)
    axes.set_title(
        f"Table {ablation.table}: {ablation.title}, on {ablation.base.label}",
        fontsize=10, loc="left",
    )  # fmt: skip
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_ours(axes: Any, row: int, finding: Finding) -> None:
    difference = finding.difference
    if difference is None:
        axes.text(0, row, "  not trained", color="0.4", va="center", fontsize=9)
        return
    single = list(difference.per_seed.values())
    if difference.half_width is not None:
        axes.errorbar(
            difference.mean, row - 0.2, xerr=difference.half_width, color=_OURS, elinewidth=1.8,
            capsize=3, zorder=2,
        )  # fmt: skip
        axes.plot(
            single, [row - 0.2] * len(single), "|", color=_SEED, markersize=9, markeredgewidth=1.4,
            label="one seed", zorder=2.5,
        )  # fmt: skip
    words = "and 95 % interval" if difference.half_width is not None else "in one seed"
    label = f"ours {words}, sign {'' if difference.is_resolved else 'not '}resolved"
    mark = "s" if difference.half_width is None else "o"
    axes.plot(
        difference.mean, row - 0.2, mark, color=_OURS, markersize=6, label=label, zorder=3,
        markerfacecolor=_OURS if difference.is_resolved else "white", markeredgewidth=1.6,
    )  # fmt: skip


def _keep_in_sight(panels: Sequence[Any], tables: Sequence[Sequence[Finding]]) -> None:
    """Cuts intervals that would press all points into one: with two seeds they are that wide."""
    dots, ends = [0.0], [0.0]
    for finding in (each for findings in tables for each in findings):
        if finding.difference is not None:
            mean, width = finding.difference.mean, finding.difference.half_width or 0.0
            dots += [abs(each) for each in finding.difference.per_seed.values()]
            ends += [abs(mean) + width]
        dots.append(abs(finding.printed_difference or 0.0))
    edge = _FARTHEST * max(dots)
    if max(ends) <= edge:
        return
    panels[0].set_xlim(-edge, edge)
    for axes, findings in zip(panels, tables, strict=True):
        for row, difference in enumerate(each.difference for each in findings):
            for sign, mark in ((-1, "<"), (1, ">")):
                if difference and sign * difference.mean + (difference.half_width or 0.0) > edge:
                    axes.plot(sign * edge, row - 0.2, mark, color=_OURS, clip_on=False)


def _legend(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Every kind of mark once, whichever panel has it."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = sorted(found, key=lambda label: (label.startswith("paper"), label))
    return [found[label] for label in order], order


# --- What trained ablations leave in their results folder: tables, a line a variant, a picture.

NAME = "ablation"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written; one table and one block for each ablation, and notes for all of them."""

    tables: tuple[list[Finding], ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


def write_report(folder: Path, ablations: Sequence[Ablation], results: Results) -> Report:
    """Compares with the paper, and writes `ablation.md`, `ablation.csv` and `ablation.png`.

    Raises:
        UserError: A file cannot be written.
    """
    tables = tuple(judge(ablation, results) for ablation in ablations)
    most = max((len(each.scores) for each in results.standings), default=0)
    report = Report(
        tables=tables,
        blocks=tuple(trained_block(findings) for findings in tables),
        notes=(*legend(most), *results.notes),
    )
    title = f"Ablations on {say_contest(results.facts)}"
    with atomic_write(folder / f"{NAME}.md", "w") as file:
        file.write(_page(title, report))
    write_csv(folder / f"{NAME}.csv", [each for findings in tables for each in findings])
    with if_possible():
        save_ablation(folder / f"{NAME}.png", tables, title)
    return report


def _page(title: str, report: Report) -> str:
    parts = [f"# {markdown.text(title)}\n", f"![Differences and their intervals]({NAME}.png)\n"]
    parts += [block.to_markdown() for block in report.blocks]
    parts.append("".join(f"- {markdown.text(note)}\n" for note in report.notes))
    return "\n".join(parts)
