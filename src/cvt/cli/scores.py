"""How `cvt eval` shows what it measured: tables, one line of figures, and pictures."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cvt.cli.output import print_json, print_skipped, print_table

if TYPE_CHECKING:
    from cvt.evaluate import CorruptionScores, Evaluation, RealScore


def report(
    result: "Evaluation | RealScore | CorruptionScores",
    benchmark: str | None,
    confusion: Path,
    reliability: Path | None,
    json: bool,
) -> int:
    """Draws and prints a result; returns the exit code.

    What was skipped, or is missing from a benchmark, is said on stderr, or in the JSON.

    Args:
        reliability: Beside `confusion`, as `reliability.png`, if None.

    Raises:
        UserError: A picture cannot be written.
    """
    from cvt.evaluate import BENCHMARKS

    pictures = _save_pictures(result, confusion, reliability)
    whole = BENCHMARKS[benchmark] if benchmark else None
    found = result.num_images + len(result.bad)
    if json:
        of_benchmark = {"benchmark": benchmark, "num_expected": whole.num_images} if whole else {}
        print_json({**of_benchmark, **result.to_dict(), **pictures})
        return 1 if result.bad else 0
    _print(result, with_classes=benchmark is None)
    for name, path in pictures.items():
        print(f"{_TITLES[name]}: {path}")
    print_skipped(result.bad, result.num_images)
    if whole and found != whole.num_images:
        told = f"{found:,} of {whole.num_images:,} images"
        print(f"cvt: this is not all of {whole.title}: {told}.", file=sys.stderr)
    return 1 if result.bad else 0


def _save_pictures(
    result: "Evaluation | RealScore | CorruptionScores", confusion: Path, reliability: Path | None
) -> dict[str, str]:
    """Draws what a result has to show; returns the paths by what they are called in JSON."""
    from cvt.evaluate import CorruptionScores, Evaluation

    pictures: dict[str, str] = {}
    if isinstance(result, CorruptionScores):
        return pictures
    if isinstance(result, Evaluation):
        result.save_confusion(confusion)
        pictures["confusion_picture"] = str(confusion)
    reliability = reliability or confusion.with_name("reliability.png")
    result.save_reliability(reliability)
    return {**pictures, "reliability_picture": str(reliability)}


def _print(result: "Evaluation | RealScore | CorruptionScores", with_classes: bool) -> None:
    from cvt.evaluate import CorruptionScores, RealScore

    if isinstance(result, CorruptionScores):
        _print_corruptions(result)
    elif isinstance(result, RealScore):
        _print_real(result)
    else:
        _print_evaluation(result, with_classes)


_TITLES = {
    "confusion_picture": "Confusion matrix",
    "reliability_picture": "Reliability diagram",
}


def _print_evaluation(result: "Evaluation", with_classes: bool) -> None:
    if with_classes:
        print_table(
            ("Class", "Images", "Accuracy %", "Precision %"),
            [
                (each.name, each.num_images, _percent(each.accuracy), _percent(each.precision))
                for each in result.per_class
            ],
        )
        print()
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2f} %"
    among = "" if with_classes else f" among {len(result.per_class):,} classes"
    print(
        f"{result.num_images:,} images{among}: top-1 {result.top1:.2f} %{top5}, "
        f"loss {result.loss:.4f}, calibration error {100 * result.ece:.2f} %"
    )


def _print_real(result: "RealScore") -> None:
    print(
        f"{result.num_images:,} images ({result.num_excluded:,} without a label left out): ReaL "
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
        f"calibration error {100 * result.ece:.2f} %"
    )


def _print_corruptions(result: "CorruptionScores") -> None:
    print_table(
        ("Corruption", *(f"Error % at {number}" for number in range(1, 6)), "Mean %", "CE %"),
        [
            (
                name,
                *(f"{error:.2f}" for error in errors),
                f"{result.mean_errors[name]:.2f}",
                f"{result.corruption_errors[name]:.2f}",
            )
            for name, errors in result.errors.items()
        ],
    )
    mce = (
        f"no mCE, which takes all 15 corruptions ({len(result.errors)} are there)"
        if result.mce is None
        else f"mCE {result.mce:.2f} % (AlexNet is 100)"
    )
    print(f"\n{result.num_images:,} images: mean error {result.mean_error:.2f} %, {mce}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}"
