"""A run of a comparison: made in a process of its own, watched, and read when it has ended."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from cvt.bench.contest.results import RunResult
from cvt.errors import UserError
from cvt.parts.model import VisionModel
from cvt.runtime import ALONE, Interrupted
from cvt.training.defaults import said
from cvt.training.loop import train
from cvt.training.pace import measure_pace
from cvt.training.report import read_result
from cvt.training.run_folder import CONFIG_FILE, is_held, read_metrics
from cvt.training.screen import say_memory, say_time
from cvt.training.setup import prepare

# --- Tasks for processes of their own.

TRAIN, PACE = f"{__name__}:train_run", f"{__name__}:seconds_per_update"


def train_run(asked: Mapping[str, Any]) -> None:
    """Trains, or goes on with a run that was begun; the run's folder says the rest."""
    told: dict[str, Any] = dict(asked)
    if (Path(asked["out"]) / CONFIG_FILE).exists():
        told = {name: asked.get(name) for name in ("device", "num_workers", "data_dir")}
        told["resume"] = asked["out"]
    try:
        train(**told, progress=False)
    except Interrupted:
        raise KeyboardInterrupt from None


def seconds_per_update(asked: Mapping[str, Any]) -> float:
    """Measures how long an update takes in a run that is told this, its epochs' starts included."""
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        run = prepare({**said(asked, "the config"), "out": str(Path(folder) / "run")}, ALONE)
        model = cast("VisionModel", run.network.model)
        pace = measure_pace(run.config, model, run.record.preprocessing, run.splits, run.device)
        assert pace is not None, "it was given all the time that it takes"
        return pace.update + pace.epoch / run.updates_per_epoch


# --- On this side: waiting for a run, watching it, reading it.

_LOOK_EVERY_S = 0.2
_LONGEST_WAIT_S = 60.0


def wait_until_free(run: Path, must_stop: Callable[[], bool]) -> None:
    """Waits, a minute at most, for a process that was left alone and is about to end itself."""
    until = time.monotonic() + _LONGEST_WAIT_S
    while is_held(run) and not must_stop() and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


def say_progress(run: Path) -> str:
    """Returns how far a run has come, by its metrics."""
    try:
        history = read_metrics(run)
    except UserError:  # half written by a process that was killed
        return ""
    return f": {len(history)} epochs, val top-1 {history[-1].val_top1:.2f} %" if history else ""


def read_run(
    run: Path, *, label: str, seed: int, updates: int, batch_size: int, hardware: str
) -> RunResult:
    """Reads a finished run.

    Args:
        updates: That the run was given.
        batch_size: Images of each.
    """
    result, history = read_result(run), read_metrics(run)
    if result is None or not history:
        raise UserError(f"The run {run} is not finished; remove it to have it made again.")
    return RunResult(
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


def say_result(result: RunResult, split: str) -> str:
    """Returns what a run that has ended came to."""
    if result.top1 is None:
        return f"failed: {result.error}"
    figures = [f"{split} top-1 {result.top1:.2f} %"]
    if result.train_images_per_s is not None:
        figures.append(f"{result.train_images_per_s:,.0f} images/s")
    if result.memory_mb is not None:
        figures.append(say_memory(result.memory_mb))
    if result.seconds is not None:
        figures.append(f"{say_time(result.seconds)} of updates")
    return ", ".join(figures)
