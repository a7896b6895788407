"""From a run's folder to its line in the results."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from cvt.bench.results import Outcome
from cvt.errors import UserError
from cvt.train.report import read_result
from cvt.train.run_folder import RESULT_FILE, is_held, read_metrics

_LOOK_EVERY_S = 0.2
_LONGEST_S = 60.0


def read_outcome(
    run: Path, *, label: str, seed: int, updates: int, batch_size: int, hardware: str
) -> Outcome:
    """Reads a finished run.

    Args:
        updates: That the run was given.
        batch_size: Images of each.

    Raises:
        UserError: The run is not finished, or its files are damaged.
    """
    result, history = read_result(run), read_metrics(run)
    if result is None or not history:
        raise UserError(f"The run {run} is not finished; remove it to have it made again.")
    return Outcome(
        label=label,
        seed=seed,
        top1=result.best_top1 if result.test_top1 is None else result.test_top1,
        top5=result.test_top5,
        val_top1=result.best_top1,
        updates=updates,
        images=updates * batch_size,
        train_images_per_s=statistics.median(row.images_per_s for row in history),
        memory_mb=max(row.memory_mb for row in history),
        seconds=sum(row.seconds for row in history),
        hardware=hardware,
        bad=len(result.bad),
    )


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end."""
    return (run / RESULT_FILE).exists()


def wait_until_free(run: Path, must_stop: Callable[[], bool]) -> None:
    """Waits, a minute at most, for a process that was left alone and is about to end itself."""
    until = time.monotonic() + _LONGEST_S
    while is_held(run) and not must_stop() and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
