"""What is said and kept when a run has ended: the figures, the files, what to type next."""

from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from cvt.errors import UserError, shown
from cvt.files import atomic_write
from cvt.plain import Range, from_plain, json_text, read_json_file
from cvt.train.run_folder import (
    BEST_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    EVENTS_FOLDER,
    LAST_WEIGHTS,
    METRICS_FILE,
    RESULT_FILE,
)
from cvt.train.units import say_time

_Percent = Annotated[float, Range(0, 100)]


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
        test_top5: Top-5 accuracy on the test split, where there are more than five classes.
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
    test_top5: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        plain = {**vars(self), "run": str(self.run), "bad": list(self.bad)}
        return {name: value for name, value in plain.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ResultFacts:
    """What other rooms read of a `result.json`; see `TrainResult`."""

    best_epoch: Annotated[int, Range(1)]
    best_top1: _Percent
    test_top1: _Percent | None = None
    test_top5: _Percent | None = None
    bad: tuple[str, ...] = ()


def read_result(run: Path) -> ResultFacts | None:
    """Reads a finished run's result; None of a run that is not finished.

    Raises:
        UserError: The file is no result of a run.
    """
    path = run / RESULT_FILE
    if not path.exists():
        return None
    plain = read_json_file(path)
    if not isinstance(plain, dict):
        raise UserError(f"{path} is not the result of a run; remove it and resume the run.")
    known = {each.name for each in fields(ResultFacts)}
    return from_plain(ResultFacts, {key: plain[key] for key in plain if key in known}, str(path))


def save_result(run: Path, result: TrainResult) -> None:
    """Writes `result.json`, by which a run is known to be finished.

    Raises:
        UserError: The disk is full or the folder not writable.
    """
    with atomic_write(run / RESULT_FILE, "w") as file:
        file.write(json_text(result.to_dict(), indent=2) + "\n")


def report(result: TrainResult) -> str:
    """Returns the closing text for people."""
    lines = [
        "",
        f"Done in {say_time(result.seconds)}. Best epoch {result.best_epoch}: "
        f"validation top-1 {result.best_top1:.2f} %, loss {result.best_loss:.4f}.",
    ]
    if result.test_top1 is not None:
        lines.append(f"Test top-1 {result.test_top1:.2f} %, loss {result.test_loss:.4f}.")
    if result.bad:
        lines.append(f"{len(result.bad)} images could not be read and were skipped.")
    run, data, beside = (
        quote(shown(each)) for each in (result.run, result.data, result.run.parent)
    )
    files = {
        CARD_FILE: "what was trained, on what, how, and how good it is",
        f"{BEST_WEIGHTS}, {LAST_WEIGHTS}": "weights that describe themselves",
        f"{METRICS_FILE}, {CURVES_FILE}": "every epoch, as a table and as a picture",
        f"{EVENTS_FOLDER}/": "the same, and single updates, for TensorBoard",
        CONFIG_FILE: "everything that the run was told",
    }
    commands = (
        f"cvt eval {run} {data}",
        f"cvt predict {run} IMAGE",
        f"cvt runs {beside}",
        f"tensorboard --logdir {run}",
    )
    width = max(map(len, files))
    lines += ["", f"Written to {shown(result.run)}:"]
    lines += [f"  {name:<{width}}  {content}" for name, content in files.items()]
    lines += ["", "Next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)
