"""What an ablation came to: counts and accuracies of its variants beside the paper's."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt.bench.ablation import Ablation, Variant
from cvt.bench.contender import Contender
from cvt.bench.differences import Difference, compare_signs, paired_difference
from cvt.bench.results import Results, Standing
from cvt.files import atomic_write
from cvt.zoo.describe import describe


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
