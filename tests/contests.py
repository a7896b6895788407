"""Contests whose runs take no time: the work is made up, the files are real."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cvt.bench.contest import Budget, ContestConfig, run_contest
from cvt.bench.contest.contest import TAKE_TURNS
from cvt.bench.contest.runs import PACE, TRAIN
from cvt.bench.names import Contender, read_contender
from cvt.bench.processes import Failed, Stopped
from cvt.plain import to_plain, write_yaml
from cvt.training.report import TrainResult, save_result
from cvt.training.run_folder import CONFIG_FILE, EpochRow, write_metrics

# By this name contests know what `FakeWork` stands in for, where a test goes by the command line.
WORK = f"{run_contest.__module__}.work"
SMALL = {"data": "digits", "device": "cpu", "image_size": 8, "batch_size": 32}


@dataclass
class FakeWork:
    """Stands in for `cvt.bench.processes.work`, and notes what it was asked.

    Args:
        stop_at: The piece of work, from 1, that is stopped.
        kill_at: The piece of work in which this whole process is lost.
        broken: By model, the sentence by which its training fails.
    """

    stop_at: int = 0
    kill_at: int = 0
    broken: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def __call__(self, task, plain, must_stop):
        self.asked.append((task, plain))
        assert must_stop() is False
        if len(self.asked) == self.stop_at:
            raise Stopped
        if len(self.asked) == self.kill_at:
            raise SystemExit
        if task == TAKE_TURNS:
            return {label: 1000.0 + i for i, label in enumerate(plain["models"])}
        config = SimpleNamespace(**plain)
        if config.model in self.broken:
            Path(config.out).mkdir(parents=True)
            (Path(config.out) / CONFIG_FILE).write_text(write_yaml(to_plain(plain)))
            raise Failed(self.broken[config.model])
        if task == PACE:
            return 0.5 if config.model_args.get("kv_stride") == 1 else 1.0
        trained(config)
        return {}

    @property
    def configs(self) -> list[SimpleNamespace]:
        """What was asked to be trained."""
        return [SimpleNamespace(**plain) for task, plain in self.asked if task == TRAIN]


def accuracy(config: SimpleNamespace) -> float:
    """What a made-up run comes to: a function of what it is."""
    return 50 + len(str(config.model_args)) / 3 + config.seed / 7


def trained(config: SimpleNamespace) -> None:
    """Leaves what a run leaves."""
    run, top1 = Path(config.out), accuracy(config)
    rows = [
        EpochRow(epoch=epoch, train_loss=1.0, val_loss=1.0, val_top1=top1 - 1, lr=0.1,
                 images_per_s=speed, seconds=2.0, data_wait=0.0, memory_mb=300.0 + epoch)
        for epoch, speed in ((1, 10.0), (2, 400.0), (3, 500.0))
    ]  # fmt: skip
    write_metrics(run, rows)
    result = TrainResult(run=run, data="digits", best_epoch=3, best_top1=top1 - 1, best_loss=1.0,
                         test_top1=top1, test_loss=1.0, test_top5=90.0, seconds=1.0)  # fmt: skip
    save_result(run, result)


def no_image(path: Path, results: Any) -> None:
    """Drawing takes longer than all the rest."""


def contest(
    out: Path, names=("cvt_nano_32", "cvt_nano_32+depth=1"), do=None, progress=False,
    draw=no_image, **changes: Any,
):  # fmt: skip
    """Runs a contest of two epochs and two seeds, unless something else is said."""
    contenders = [each if isinstance(each, Contender) else read_contender(each) for each in names]
    usual = {"recipe": SMALL, "budget": Budget(amount=2, unit="epochs"), "seeds": 2, "out": out}
    config = ContestConfig(**{**usual, **changes})
    return run_contest(contenders, config, progress=progress, do=do or FakeWork(), draw=draw)


def lines(out: Path) -> list[dict[str, str]]:
    """Reads the table of runs as text."""
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
