"""`cvt eval CHECKPOINT DATA`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.flags import Device, Json
from cvt.cli.output import print_json, print_table

if TYPE_CHECKING:
    from cvt.evaluate import Evaluation


def evaluate(
    checkpoint: str,
    data: str = "digits",
    /,
    *,
    split: Annotated[
        str | None, Parameter(help="train, val, test or all; by default test if there is one.")
    ] = None,
    data_dir: Annotated[str | None, Parameter(help="Where torch/ and hfds/ data lie.")] = None,
    download: Annotated[
        bool, Parameter(negative="", help="Fetch a torch/ data set that is not there yet.")
    ] = False,
    confusion: Annotated[
        Path, Parameter(help="Where the picture of the confusion matrix goes.")
    ] = Path("confusion.png"),
    batch_size: Annotated[int, Parameter(help="Images per forward pass.")] = 64,
    num_workers: Annotated[int, Parameter(help="Processes that prepare images; 0: none.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Measure a checkpoint on labelled images: top-1, top-5, each class, loss, calibration.

    Parameters
    ----------
    checkpoint
        A run folder, a checkpoint file, a hub id or the name of published weights.
    data
        As for `cvt train`.
    """
    from cvt.evaluate import evaluate as run

    result = run(
        checkpoint,
        data,
        split=split,
        data_dir=data_dir,
        download=download,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )
    result.save_confusion(confusion)
    if json:
        print_json({**result.to_dict(), "confusion_picture": str(confusion)})
    else:
        _print(result, confusion)
    return 1 if result.bad else 0


def _print(result: "Evaluation", confusion: Path) -> None:
    print_table(
        ("Class", "Images", "Accuracy %", "Precision %"),
        [
            (each.name, each.num_images, _percent(each.accuracy), _percent(each.precision))
            for each in result.per_class
        ],
    )
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2f} %"
    print(
        f"\n{result.num_images:,} images: top-1 {result.top1:.2f} %{top5}, "
        f"loss {result.loss:.4f}, calibration error {100 * result.ece:.2f} %"
        f"\nConfusion matrix: {confusion}"
    )
    for sentence in result.bad:
        print(f"cvt: skipped: {sentence}", file=sys.stderr)
    if result.bad:
        count = len(result.bad)
        print(f"cvt: {count} of {count + result.num_images} images skipped.", file=sys.stderr)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}"
