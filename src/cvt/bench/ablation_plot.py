"""The picture of ablations: each variant's difference with its interval, and the paper's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvt.bench.findings import Finding
from cvt.figures import picture, words

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
    with picture(path, figsize=size, layout="constrained") as figure:
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
