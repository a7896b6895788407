"""Networks trained by one recipe and budget, and measured side by side.

A comparison is planned, watched and told of in the process at hand; each run is made in a process
of its own.
"""

from cvt.bench.contest.contest import (
    PLOT_FILE,
    RESULTS_FILE,
    TABLE_FILE,
    ContestStopped,
    run_contest,
)
from cvt.bench.contest.plan import Budget, ContestConfig, make_plan, read_budget
from cvt.bench.contest.plot import pareto_front, save_contest
from cvt.bench.contest.results import (
    ContenderResult,
    ContestResults,
    Measured,
    RunResult,
    Spread,
    notes_of,
)

__all__ = [
    "PLOT_FILE",
    "RESULTS_FILE",
    "TABLE_FILE",
    "Budget",
    "ContenderResult",
    "ContestConfig",
    "ContestResults",
    "ContestStopped",
    "Measured",
    "RunResult",
    "Spread",
    "make_plan",
    "notes_of",
    "pareto_front",
    "read_budget",
    "run_contest",
    "save_contest",
]
