"""Speed and memory of networks side by side, each form in a fresh process.

A bench is planned, made and told of in the process at hand. What builds, counts and times models
(`facts`, `measure`, with `models` and `forms`) works in processes of its own.
"""

from cvt.bench.speed.bench import BenchStopped, run_bench
from cvt.bench.speed.plan import BenchConfig, Entrant, Plan, Setting, make_plan, make_settings
from cvt.bench.speed.report import notes_of, report_text, save_speed_plot
from cvt.bench.speed.results import BenchFacts, Measurement, SpeedResult, SpeedResults

__all__ = [
    "BenchConfig",
    "BenchFacts",
    "BenchStopped",
    "Entrant",
    "Measurement",
    "Plan",
    "Setting",
    "SpeedResult",
    "SpeedResults",
    "make_plan",
    "make_settings",
    "notes_of",
    "report_text",
    "run_bench",
    "save_speed_plot",
]
