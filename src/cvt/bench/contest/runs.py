"""The runs of a comparison: what its folder keeps of them, and how one is made and shown."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt.bench.contest.recipe import seconds_per_update
from cvt.bench.contest.results import Outcome
from cvt.bench.folder import Contents, ResultsFolder
from cvt.bench.names import Contender
from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.plain import json_text, read_json_file
from cvt.runtime import Interrupted
from cvt.training.defaults import said
from cvt.training.loop import train
from cvt.training.run_folder import CONFIG_FILE, read_metrics
from cvt.training.screen import say_memory, say_time

CONTEST_FILE = "contest.yaml"
RESULTS_FILE = "results.csv"
MEASURED_FILE = "measured.json"
TABLE_FILE = "table.md"
PLOT_FILE = "accuracy.png"
RUNS_FOLDER = "runs"

# Tasks for processes of their own.
TRAIN, PACE = (f"{__name__}:{name}" for name in ("train_run", "measure_pace"))


def train_run(plain: Mapping[str, Any]) -> None:
    """Trains, or goes on with a run that was begun; the run's folder says the rest."""
    run = Path(plain["out"])
    told: dict[str, Any] = dict(plain)
    if (run / CONFIG_FILE).exists():
        told = {name: plain.get(name) for name in ("device", "num_workers", "data_dir")}
        told["resume"] = run
    try:
        train(**told, progress=False)
    except Interrupted:
        raise KeyboardInterrupt from None


def measure_pace(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how long an update takes."""
    return {"seconds_per_update": seconds_per_update(said(plain, "the config"))}


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Says the first thing in which a contest is another one; more contenders or seeds are not."""
    contenders, seeds = stored.get("contenders"), stored.get("seeds", 0)
    if not isinstance(contenders, dict) or not isinstance(seeds, int):
        raise ValueError
    for label, contender in contenders.items():
        if label not in now["contenders"]:
            return f"{label} takes part there, and is not named now"
        if contender != now["contenders"][label]:
            return f"{label} is {contender} there, and {now['contenders'][label]} now"
    if seeds > now["seeds"]:
        return f"it has {seeds} seeds, and now there are {now['seeds']}"
    for group in ("budget", "recipe", "data", "software"):
        theirs, ours = (_flat(group, each.get(group)) for each in (stored, now))
        for name in {**theirs, **ours}:
            if theirs.get(name) != ours.get(name):
                return f"{name} is {theirs.get(name)} there, and {ours.get(name)} now"
    return ""


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Names nested values as messages call them: `optim.lr`, `training data`."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            found |= {f"{key}.{inner}": item for inner, item in each.items()}
        else:
            found[f"{key} data" if name == "data" else key] = each
    return found


COMPARISON = Contents(
    name="comparison",
    plan_file=CONTEST_FILE,
    table_file=RESULTS_FILE,
    row=Outcome,
    rows="a comparison's runs",
    mend="remove it to have it made anew from the run folders",
    difference=_difference,
)


class Ledger:
    """What a comparison has measured.

    Args:
        folder: The results folder.
    """

    def __init__(self, folder: ResultsFolder[Outcome]) -> None:
        self.folder = folder
        self.measured: dict[str, Any] = _read_measured(folder.path / MEASURED_FILE)
        self.outcomes = {each.key: each for each in folder.rows}

    def run_folder(self, contender: Contender, seed: int) -> Path:
        """Where a run lies while it is needed."""
        return self.folder.path / RUNS_FOLDER / f"{contender.folder}-seed{seed}"

    def add(self, outcome: Outcome) -> None:
        """Writes a run's figures down, in place of any that it had."""
        self.outcomes[outcome.key] = outcome

    def note(self, name: str, value: Any) -> None:
        """Keeps something that was measured beside the runs."""
        self.measured[name] = value
        with atomic_write(self.folder.path / MEASURED_FILE, "w") as file:
            file.write(json_text(self.measured, indent=2) + "\n")

    def remove_run(self, run: Path) -> None:
        """Deletes a run whose figures are written down, as far as that is allowed."""
        shutil.rmtree(run, ignore_errors=True)


def _read_measured(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    measured = read_json_file(path)
    if not isinstance(measured, dict):
        raise UserError(f"{path} is not what was measured; remove it to have it measured again.")
    return measured


def say_progress(words: str, run: Path) -> str:
    """Returns how far a run has come, by its metrics."""
    try:
        history = read_metrics(run)
    except UserError:  # half written by a process that was killed
        return words
    if not history:
        return words
    return f"{words}: {len(history)} epochs, val top-1 {history[-1].val_top1:.2f} %"


def say_outcome(outcome: Outcome, split: str) -> str:
    """Returns what a run that has ended came to."""
    if outcome.top1 is None:
        return f"failed: {outcome.error}"
    figures = [f"{split} top-1 {outcome.top1:.2f} %"]
    if outcome.train_images_per_s is not None:
        figures.append(f"{outcome.train_images_per_s:,.0f} images/s")
    if outcome.memory_mb is not None:
        figures.append(say_memory(outcome.memory_mb))
    if outcome.seconds is not None:
        figures.append(f"{say_time(outcome.seconds)} of updates")
    return ", ".join(figures)
