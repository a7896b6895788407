"""The folder of a run: what it is called, and the small files in it."""

import csv
import re
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from shlex import quote

from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.train.config import TrainConfig
from cvt.train.progress import EpochRow

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"


def make_run_folder(config: TrainConfig) -> Path:
    """Makes an empty folder: `config.out`, or the next free `runs/DATA-MODEL-NUMBER`.

    Raises:
        UserError: `config.out` already holds something, or nothing can be written there.
    """
    if config.out is None:
        return _next_free(config)
    run = Path(config.out).expanduser()
    try:
        run.mkdir(parents=True, exist_ok=True)
        is_taken = any(run.iterdir())
    except OSError as error:
        raise UserError(f"Cannot make the folder {run}: {error.strerror}.") from error
    if is_taken:
        raise UserError(
            f"The folder {run} is not empty, and a run never overwrites; go on with it by "
            f"`cvt train --resume {quote(str(run))}`, or give another --out."
        )
    return run


def write_metrics(run: Path, history: list[EpochRow]) -> None:
    """Writes `metrics.csv`, a line an epoch, whole each time: it never runs ahead of the state."""
    with atomic_write(run / METRICS_FILE, "w") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(EpochRow)], lineterminator="\n")
        writer.writeheader()
        for row in history:
            writer.writerow({name: _short(value) for name, value in asdict(row).items()})


def _next_free(config: TrainConfig) -> Path:
    data = Path(config.data).resolve().stem if config.data else "data"
    name = re.sub(r"[^\w.-]+", "-", f"{data}-{config.model}")
    for number in count(1):
        run = Path("runs") / f"{name}-{number}"
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"Cannot make the folder {run}: {error.strerror}; give another with --out."
            ) from error
        return run
    raise AssertionError("count() does not end")


def _short(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
