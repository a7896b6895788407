"""A search for settings of `cvt train`: random trials on sets of photographs, CPU-seconds alike.

    python benchmarks/search.py ~/photos/trash ~/photos/houses --weights demo --cpu-seconds 120

The trials are the same on every set, and every value of a setting occurs equally often among them
(a Latin hypercube, drawn by seed). Each is a run in a process of its own, on one thread, whose
schedule ends when the process has taken its CPU-seconds, imports and the test included. Which trial
is best is decided on validation images; test figures are only told. Rows that are there are kept.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from photos import commit, run

from cvt.errors import UserError
from cvt.tables import Table, read_csv, write_csv
from cvt.training.loop import train

SPACE = {
    "weights": ("given", "given", "given", "none"),
    "image_size": (64, 96, 128),
    "opt": ("adamw", "muon"),
    "lr": (3e-4, 4e-3),  # a range, on a logarithmic scale
    "layer_decay": (0.65, 0.75, 0.9, 1.0),
    "freeze": ("none", "bn"),
    "scale": (0.2, 0.35, 0.6),
    "color_jitter": (0.0, 0.2, 0.4),
    "mix": ("none", "mixup", "cutmix"),
    "batch_size": (32, 64, 128),
    "head": ("fresh", "probed"),
    "ema_decay": (0.0, 0.99),
}
_FROM_SCRATCH = {"layer_decay": 1.0, "freeze": "none", "head": "fresh"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings, and what they came to on a set; accuracies in percent."""

    data: str
    start: str
    budget: float
    number: int
    weights: str
    image_size: int
    opt: str
    lr: float
    layer_decay: float
    freeze: str
    scale: float
    color_jitter: float
    mix: str
    batch_size: int
    head: str
    ema_decay: float
    val_top1: float
    test_top1: float
    epochs: int
    cpu_seconds: float
    seconds: float
    code: str


def settings(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns what each of `count` trials tries."""
    random = np.random.default_rng(seed)
    columns = {}
    for name, values in SPACE.items():
        if name == "lr":
            low, high = np.log(values)
            shares = (random.permutation(count) + random.random(count)) / count
            columns[name] = [float(f"{np.exp(low + share * (high - low)):.2g}") for share in shares]
        else:
            columns[name] = [values[n % len(values)] for n in random.permutation(count)]
    drawn = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [one | (_FROM_SCRATCH if one["weights"] == "none" else {}) for one in drawn]


def arguments_of(tried: dict[str, Any], weights: str, model: str) -> dict[str, Any]:
    """Returns a trial's settings as `cvt.train` takes them."""
    start = {"model": model} if tried["weights"] == "none" else {"weights": weights}
    return start | {
        "image_size": tried["image_size"],
        "batch_size": tried["batch_size"],
        "freeze": tried["freeze"],
        "head": tried["head"],
        "ema_decay": tried["ema_decay"],
        "optim": {name: tried[name] for name in ("opt", "lr", "layer_decay")},
        "augment": {"scale": [tried["scale"], 1.0], "color_jitter": tried["color_jitter"]},
        "mix": {
            "mixup": 0.2 * (tried["mix"] == "mixup"),
            "cutmix": 1.0 * (tried["mix"] == "cutmix"),
        },
    }


def alone(plain: str) -> None:
    """Trains in this process, by its own CPU-seconds, and prints what came of it."""
    result = train(**json.loads(plain), clock=time.process_time, progress=False)
    epochs = len((result.run / "metrics.csv").read_text().splitlines()) - 1
    print(json.dumps(result.to_dict() | {"epochs": epochs}))


def measure(
    data: Path, number: int, tried: dict[str, Any], weights: str, model: str, budget: float
) -> Trial:
    """Runs a trial on a set."""
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        said = arguments_of(tried, weights, model) | {
            "data": str(data),
            "out": f"{folder}/run",
            "minutes": budget / 60,
            "num_workers": 0,
            "device": "cpu",
        }
        command = [sys.executable, __file__, "--alone", json.dumps(said)]
        found, cpu_seconds, seconds = run(command, threads=1)
    return Trial(
        data=data.name,
        start=weights,
        budget=budget,
        number=number,
        **tried,
        val_top1=found["best_top1"],
        test_top1=found["test_top1"],
        epochs=found["epochs"],
        cpu_seconds=cpu_seconds,
        seconds=seconds,
        code=commit(),
    )


# --- What the trials say.


def page(trials: Sequence[Trial]) -> str:
    """Returns the best trials of each set, and what each choice cost over all sets."""
    sets = sorted({(each.data, each.start, each.budget) for each in trials})
    best, lost = [], []
    for one in sets:
        some = [each for each in trials if (each.data, each.start, each.budget) == one]
        some.sort(key=lambda each: -each.val_top1)
        best += some[:3]
        top = max(each.test_top1 for each in some)
        lost += [(each, rank, top - each.test_top1) for rank, each in enumerate(some, 1)]
    columns = {
        "Set": "data",
        "From": "start",
        "CPU-seconds": "budget:g",
        "Val %": "val_top1:.1f",
        "Test %": "test_top1:.1f",
        "Epochs": "epochs",
        **{name: name for name in SPACE},
    }
    found = Table.of(best, columns, title="The three best of each set, by validation")
    choices = [
        {"setting": name, "value": value, "trials": len(some), **_means(some)}
        for name in SPACE
        for value, some in _by_value(name, lost).items()
    ]
    columns = {
        "Setting": "setting",
        "Value": "value",
        "Trials": "trials",
        "Mean rank": "rank:.1f",
        "Points lost": "lost:.1f",
    }
    costs = Table.of(
        choices,
        columns,
        title="What a choice costs",
        notes=(
            "Rank: place by validation among a set's trials. Points lost: to the best test figure "
            "among a set's trials.",
            "Trials from scratch count under weights only.",
        ),
    )
    return f"{found.to_markdown()}\n{costs.to_markdown()}"


_Placed = tuple[Trial, int, float]


def _by_value(name: str, placed: Sequence[_Placed]) -> dict[str, list[_Placed]]:
    some = [each for each in placed if name == "weights" or each[0].weights != "none"]
    values = sorted({getattr(each[0], name) for each in some})
    if name != "lr":
        return {str(v): [each for each in some if getattr(each[0], name) == v] for v in values}
    edges = [0, 7e-4, 1.7e-3, 1]
    return {
        f"{low:g} to {high:g}": [each for each in some if low <= each[0].lr < high]
        for low, high in pairwise(edges)
    }


def _means(placed: Sequence[_Placed]) -> dict[str, float]:
    return {
        "rank": float(np.mean([rank for _, rank, _ in placed])),
        "lost": float(np.mean([points for _, _, points in placed])),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the trials that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="*", type=Path, help="class folders with train/ and test/")
    parser.add_argument("--weights", default="demo", help="what trials start from")
    parser.add_argument("--model", default="cvt_nano_32", help="what is trained from scratch")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--cpu-seconds", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search"))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    said = parser.parse_args(arguments)
    if said.alone:
        alone(said.alone)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    table = said.out / "trials.csv"
    trials = read_csv(table, Trial, "a table of trials", "remove it")
    start = Path(said.weights).name
    for number, tried in enumerate(settings(said.trials)):
        for data in said.data:
            if (data.name, start, said.cpu_seconds, tried) in map(_known, trials):
                continue
            try:
                one = measure(data, number, tried, said.weights, said.model, said.cpu_seconds)
            except UserError as problem:
                print(f"{data.name}, trial {number}: {problem}", flush=True)
                continue
            told = f"val {one.val_top1:.1f} %, test {one.test_top1:.1f} %"
            print(f"{data.name}, trial {number}: {told}, {one.epochs} epochs", flush=True)
            trials.append(one)
            write_csv(table, [each.name for each in fields(Trial)], map(asdict, trials), digits=5)
    if trials:
        (said.out / "table.md").write_text(page(trials), encoding="utf-8")


def _known(trial: Trial) -> tuple[Any, ...]:
    return trial.data, trial.start, trial.budget, {name: getattr(trial, name) for name in SPACE}


if __name__ == "__main__":
    main()
