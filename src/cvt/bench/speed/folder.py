"""The results folder of a bench."""

from collections.abc import Mapping
from typing import Any

from cvt.bench.folder import Contents
from cvt.bench.speed.plan import Measurement

MEASURED_FILE = "measurements.csv"
CSV_FILE = "table.csv"
TABLE_FILE = "table.md"
PLOT_FILE = "speed.png"
COMPILED_FOLDER = ".compiled"
# A package that was installed, or a GPU that was found, since the first measurement.
_MAY_GROW = ("software", "hardware")


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names a part that is another one; what was added to the machine changes none."""
    for name in {**stored, **now}:
        one, other = stored.get(name), now.get(name)
        if name in _MAY_GROW and isinstance(one, Mapping) and isinstance(other, Mapping):
            one, other = dict(one), {key: other.get(key) for key in one}
        if one != other:
            return f"{name} is {stored.get(name)} there, and {now.get(name)} now"
    return ""


BENCH = Contents(
    name="bench",
    plan_file="bench.yaml",
    table_file=MEASURED_FILE,
    row=Measurement,
    rows="measurements",
    mend="give another --out",
    difference=_difference,
)
