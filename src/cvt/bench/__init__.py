"""Side-by-side measurement: contests under one recipe and budget, and sheets of exact counts."""

from cvt.bench.budget import Budget, read_budget
from cvt.bench.contender import Contender, read_contender
from cvt.bench.contest import ContestConfig, run_contest
from cvt.bench.results import Outcome, Results, Spread, Standing

__all__ = [
    "Budget",
    "Contender",
    "ContestConfig",
    "Outcome",
    "Results",
    "Spread",
    "Standing",
    "read_budget",
    "read_contender",
    "run_contest",
]
