"""What is said when a run has ended: the figures, the files, and what to type next."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from cvt.train.run_folder import (
    BEST_WEIGHTS,
    CONFIG_FILE,
    CURVES_FILE,
    LAST_WEIGHTS,
    METRICS_FILE,
)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to; accuracies in percent, losses in nats.

    Args:
        run: The run's folder.
        data: Name of the data, as it was given.
        best_epoch: The epoch, from 1, whose weights are in `best.safetensors`.
        best_top1: Its accuracy on the validation split.
        best_loss: Its loss there.
        test_top1: The same weights' accuracy on the test split, or None if the data has none.
        test_loss: Their loss there.
        seconds: Time from the call to the end, of the last session if the run was resumed.
        bad: A sentence for each picture that could not be read.
    """

    run: Path
    data: str
    best_epoch: int
    best_top1: float
    best_loss: float
    test_top1: float | None
    test_loss: float | None
    seconds: float
    bad: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        plain = {**vars(self), "run": str(self.run), "bad": list(self.bad)}
        return {name: value for name, value in plain.items() if value is not None}


def report(result: TrainResult) -> str:
    """Returns the closing text for people."""
    minutes, seconds = divmod(round(result.seconds), 60)
    lines = [
        "",
        f"Done in {minutes} min {seconds} s. Best epoch {result.best_epoch}: "
        f"validation top-1 {result.best_top1:.2f} %, loss {result.best_loss:.4f}.",
    ]
    if result.test_top1 is not None:
        lines.append(f"Test top-1 {result.test_top1:.2f} %, loss {result.test_loss:.4f}.")
    if result.bad:
        lines.append(f"{len(result.bad)} images could not be read and were skipped.")
    run = result.run
    lines += [
        "",
        f"Written to {run}:",
        f"  {BEST_WEIGHTS}, {LAST_WEIGHTS}  weights that describe themselves",
        f"  {METRICS_FILE}, {CURVES_FILE}  every epoch, as a table and as a picture",
        f"  {CONFIG_FILE}  everything that the run was told",
        "",
        "Next:",
        f"  cvt eval {quote(str(run))} {quote(result.data)}",
        f"  cvt predict {quote(str(run))} IMAGE",
    ]
    return "\n".join(lines)
