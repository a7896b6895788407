"""Ablations as tables for people."""

from collections.abc import Sequence

from cvt.bench.block import Block, say_gmacs, say_number
from cvt.bench.findings import Finding
from cvt.bench.paper_tables import PAPER


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
