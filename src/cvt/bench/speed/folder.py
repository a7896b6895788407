"""The results folder of a bench: what it is, and what has been measured so far."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cvt.bench.folder import read_rows
from cvt.bench.speed.plan import Measurement
from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.plain import read_yaml_file, write_yaml

BENCH_FILE = "bench.yaml"
MEASURED_FILE = "measurements.csv"
CSV_FILE = "table.csv"
TABLE_FILE = "table.md"
PLOT_FILE = "speed.png"
COMPILED_FOLDER = ".compiled"
# A package that was installed, or a GPU that was found, since the first measurement.
_MAY_GROW = ("software", "hardware")


class SpeedLedger:
    """Reads and writes the measurements of one bench; the file is whole at any moment.

    Args:
        folder: The results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MEASURED_FILE
        self.measured: list[Measurement] = read_measurements(self.path)

    def add(self, measurement: Measurement) -> None:
        """Writes a measurement down."""
        self.measured.append(measurement)
        self._write()

    def drop(self, gone: Iterable[Measurement]) -> None:
        """Forgets measurements that are about to be made again."""
        gone = set(gone)
        if gone:
            self.measured = [each for each in self.measured if each not in gone]
            self._write()

    def _write(self) -> None:
        write_rows(self.path, [asdict(each) for each in self.measured])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table with a line a row, under the names of the first row."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_measurements(path: Path) -> list[Measurement]:
    """Reads a table of measurements; none is there before the first one.

    Raises:
        UserError: It is no such table.
    """
    try:
        return read_rows(path, Measurement)
    except ValueError as error:
        raise UserError(
            f"{path} is not a table of measurements ({error}); mend it, or give another --out."
        ) from None


def open_bench(folder: Path, bench: Mapping[str, Any]) -> None:
    """Says in a results folder what it holds, or makes sure that it holds this bench.

    Raises:
        UserError: It holds something else, or another bench; the message names the difference.
    """
    path = folder / BENCH_FILE
    if path.exists():
        stored = _read_bench(path)
        for name in {**stored, **bench}:
            if not _is_same(name, stored.get(name), bench.get(name)):
                raise UserError(
                    f"The folder {folder} holds another bench: {name} is {stored.get(name)} there, "
                    f"and {bench.get(name)} now; put that back, or give another --out."
                )
        if stored != bench:
            _write_bench(path, bench)
        return
    if any(not each.name.startswith(".") for each in folder.iterdir()):
        raise UserError(f"The folder {folder} is not empty and holds no bench; give another --out.")
    _write_bench(path, bench)


def _is_same(name: str, stored: Any, now: Any) -> bool:
    """Whether a bench is the same in a part; what was added to the machine changes none of it."""
    if name in _MAY_GROW and isinstance(stored, Mapping) and isinstance(now, Mapping):
        return all(now.get(each) == value for each, value in stored.items())
    return stored == now


def _write_bench(path: Path, bench: Mapping[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        file.write(write_yaml(dict(bench)))


def _read_bench(path: Path) -> dict[str, Any]:
    stored = read_yaml_file(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path} does not describe a bench; give another --out.")
    return stored
