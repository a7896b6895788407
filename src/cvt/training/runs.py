"""Runs read back from their folders, to list and compare them; needs neither torch nor the data."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cvt.errors import UserError
from cvt.files import expanded
from cvt.plain import from_others, read_yaml_file
from cvt.training.report import TrainResult, read_result
from cvt.training.run_folder import (
    BEST_WEIGHTS,
    CONFIG_FILE,
    LAST_WEIGHTS,
    METRICS_FILE,
    RESULT_FILE,
    EpochRow,
    best_epoch,
    is_held,
    read_metrics,
)
from cvt.training.screen import CALL, flat

_ALL_FILES = (CONFIG_FILE, METRICS_FILE, RESULT_FILE, BEST_WEIGHTS, LAST_WEIGHTS)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# These differ between any two runs, or have a column of their own.
_NO_SETTING = ("data", "model", "out", "data_dir", *CALL)


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What a run's folder says; accuracies in percent, times in seconds.

    Args:
        name: Its path below the folder that was searched.
        config: Every field under its name on the command line, such as `optim.lr`.
        num_params: Of its weights, or None before the first are written.
        state: `running` is seen on this machine, and over file systems that share locks.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    history: tuple[EpochRow, ...]
    result: TrainResult | None
    num_params: int | None
    state: Literal["finished", "running", "stopped"]

    @property
    def best(self) -> EpochRow | None:
        """The epoch whose weights were kept."""
        return best_epoch(self.history) if self.history else None

    @property
    def epochs_done(self) -> int:
        """The last epoch that was validated."""
        return self.history[-1].epoch if self.history else 0

    @property
    def ended(self) -> str:
        """What a finished run's length came from: epochs, updates, minutes or patience."""
        return self.result.ended if self.result else ""

    @property
    def test_top1(self) -> float | None:
        """On the test split, if the run is finished and the data has one."""
        return self.result.test_top1 if self.result else None

    @property
    def seconds(self) -> float:
        """Training time of the finished epochs, without validation."""
        return sum(row.seconds for row in self.history)

    @property
    def images_per_s(self) -> float | None:
        """Images per second that the finished epochs were trained on."""
        images = sum(row.images_per_s * row.seconds for row in self.history)
        return images / self.seconds if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        best = self.best
        plain = {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "data": self.config["data"],
            "model": self.config["model"],
            "num_params": self.num_params,
            "epochs": self.config.get("epochs"),
            "epochs_done": self.epochs_done,
            "ended": self.ended or None,
            "best_epoch": best.epoch if best else None,
            "best_top1": best.val_top1 if best else None,
            "best_loss": best.val_loss if best else None,
            "test_top1": self.test_top1,
            "images_per_s": self.images_per_s,
            "seconds": self.seconds,
            "config": dict(self.config),
        }
        return {name: value for name, value in plain.items() if value is not None}


def read_runs(folder: str | Path) -> tuple[list[StoredRun], list[str]]:
    """Reads all runs in a folder and below, the best validation top-1 first.

    Returns:
        The runs, and a sentence for each folder that looks like a run but cannot be read.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}, expected one with runs; make a run by `cvt train`."
        )
    runs, bad = [], []
    for path in _run_folders(folder, bad):
        try:
            runs.append(_read_run(path, folder))
        except UserError as error:
            bad.append(f"{path}: {error}")
    if not runs and not bad:
        raise UserError(f"There is no run in {folder}; make one by `cvt train`.")
    return sorted(runs, key=_rank), bad


def differences(runs: Sequence[StoredRun]) -> dict[str, list[Any]]:
    """Returns the settings that are not the same in all runs: by name, a value for each run.

    What follows from another setting is left out: the learning rate for 512 images where it has
    been scaled to the batch, and a final rate that is the same part of the peak everywhere.
    """
    names = dict.fromkeys(name for run in runs for name in run.config)
    found = {}
    for name in names:
        values = [run.config.get(name) for run in runs]
        if name not in _NO_SETTING and any(value != values[0] for value in values):
            found[name] = values
    if "optim.base_lr" in found and all(_is_scaled(run.config) for run in runs):
        del found["optim.base_lr"]
    if "optim.min_lr" in found and len({_final_part(run.config) for run in runs}) == 1:
        del found["optim.min_lr"]
    return found


def _run_folders(folder: Path, unread: list[str]) -> Iterator[Path]:
    """Finds folders with a run's files in them, and does not look below those, nor along links.

    Those that cannot be looked into are added to `unread`, a sentence each.
    """
    left = [folder]
    while left:
        where = left.pop()
        try:
            with os.scandir(where) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            below = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            unread.append(f"{where}: Cannot look into it: {error.strerror}.")
            continue
        if {entry.name for entry in found}.intersection(_ALL_FILES[:3]):
            yield where
        else:
            left += [where / name for name in below[::-1] if not name.startswith(".")]


def _read_run(path: Path, folder: Path) -> StoredRun:
    config = _read_config(path / CONFIG_FILE)
    result = read_result(path)
    name = str(path.relative_to(folder)) if path != folder else path.resolve().name
    finished = "finished" if result else "stopped"
    return StoredRun(
        name=name,
        path=path,
        config=config,
        history=tuple(read_metrics(path)),
        result=result,
        num_params=_num_params(path),
        state="running" if is_held(path) else finished,
    )


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The settings that are calculated with or called by name."""

    data: str
    model: str | None
    epochs: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    optim: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Rates:
    base_lr: float | None = None
    lr: float | None = None
    min_lr: float | None = None


def _read_config(path: Path) -> dict[str, Any]:
    """Reads a config as it is: runs of other versions, with other fields, are to be listed too."""
    plain = read_yaml_file(path)
    if not isinstance(plain, dict) or not {"data", "model"} <= set(plain):
        raise UserError(f"Its {path.name} is not the config of a run: it needs data and model.")
    known = from_others(_Figures, plain, str(path))
    from_others(_Rates, known.optim, f"optim in {path}")
    return flat(plain)


def _num_params(path: Path) -> int | None:
    """Counts what is in the header of the weights, running statistics left out."""
    from safetensors import SafetensorError, safe_open

    for name in (BEST_WEIGHTS, LAST_WEIGHTS):
        if not (path / name).is_file():
            continue
        try:
            with safe_open(path / name, framework="np") as file:
                names = [each for each in file.keys() if not each.endswith(_BUFFERS)]  # noqa: SIM118
                return sum(math.prod(file.get_slice(each).get_shape()) for each in names)
        except (OSError, SafetensorError):
            raise UserError(f"Its {name} is truncated or no safetensors file.") from None
    return None


def _rank(run: StoredRun) -> tuple[float, float, str]:
    best = run.best
    return (-best.val_top1, best.val_loss, run.name) if best else (1.0, 0.0, run.name)


def _is_scaled(config: Mapping[str, Any]) -> bool:
    """Whether the learning rate is `base_lr * batch_size / 512`, to rounding."""
    base_lr, batch_size, lr = (
        config.get(name) for name in ("optim.base_lr", "batch_size", "optim.lr")
    )
    if not (base_lr and batch_size and lr):
        return False
    return abs(base_lr * batch_size / 512 / lr - 1) < 1e-6


def _final_part(config: Mapping[str, Any]) -> str | None:
    lr, min_lr = config.get("optim.lr"), config.get("optim.min_lr")
    return f"{min_lr / lr:.6g}" if lr and min_lr is not None else None
