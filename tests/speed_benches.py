"""Benches whose measurements take no time: the work is made up, the files are real."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvt.bench.processes import Failed, Stopped
from cvt.bench.speed import BenchConfig, run_bench
from cvt.bench.speed.bench import FACTS

# By this name benches know what `FakeSpeed` stands in for, where a test goes by the command line.
WORK = f"{run_bench.__module__}.work"
MACS = 1_000_000_000


@dataclass
class FakeSpeed:
    """Stands in for `cvt.bench.processes.work`, and notes what it was asked to measure.

    Args:
        stop_at: The measurement, from 1, that is stopped.
        broken: By label of an entrant, the sentence by which it fails.
        rates: Images/s by label, a value a call; 100 where nothing is said.
        hardware: What it runs on.
        broken_at: The batch size at which it fails; 0 for every one.
        more: By label, further fields of its measurements.
        weights: What the checkpoint `demo` holds.
        lacking: By device and dtype, the sentence by which nothing is measured there.
    """

    stop_at: int = 0
    broken: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[str, list[float]] = field(default_factory=dict)
    hardware: str = "a processor"
    software: Mapping[str, str] = field(default_factory=lambda: {"torch": "1.2.3"})
    broken_at: int = 0
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: str = "abc"
    lacking: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    questions: Mapping[str, Any] = field(default_factory=dict)
    told: list[Mapping[str, Any]] = field(default_factory=list)
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def __call__(self, task, plain, must_stop):
        assert must_stop() is False
        if task == FACTS:
            self.questions = plain
            return {
                "devices": list(plain["devices"]) if self.lacking else ["cpu"],
                "lacking": self.lacking,
                "threads": plain["threads"] or [2],
                "hardware": {"cpu": self.hardware},
                "software": self.software,
                "environment": {"OMP_NUM_THREADS": "2"},
                "models": {
                    name: {
                        "num_params": 5,
                        "macs": {str(n): MACS for n in plain["image_sizes"]},
                        **({"weights": self.weights} if name == "demo" else {}),
                    }
                    for name in plain["models"]
                },
            }
        self.told.append(plain)
        known = plain["measurement"]
        self.asked.append(known)
        if len(self.asked) == self.stop_at:
            raise Stopped
        label = label_of(known)
        if label in self.broken and self.broken_at in (0, known["batch_size"]):
            raise Failed(self.broken[label])
        calls = sum(label_of(each) == label for each in self.asked)
        rates = self.rates.get(label, [100.0])
        return {
            **known,
            "images_per_s": rates[(calls - 1) % len(rates)],
            "calls": 7,
            "prepare_s": 0.5,
            "first_call_s": 2.0 / calls,
            "memory_mb": 30.0 + calls,
            "peak_gflops": 400.0 if calls == 1 else 300.0,
            **self.more.get(label, {}),
        }

    @property
    def labels(self) -> list[str]:
        """Who was measured, in order."""
        return [label_of(each) for each in self.asked]


def label_of(plain: Mapping[str, Any]) -> str:
    """An entrant's label, from what a process is told."""
    return f"{plain['model']}:{plain['form']}:{plain['dtype']}"


def no_image(path: Path, results: Any) -> None:
    """Drawing takes longer than all the rest."""


def bench(
    out: Path, models=("cvt_13", "hf/cvt_13"), do=None, progress=False, draw=no_image,
    **changes: Any,
):  # fmt: skip
    """Runs a bench of two rounds, unless something else is said."""
    config = BenchConfig(**{"models": models, "repeats": 2, "out": out, **changes})
    return run_bench(config, progress=progress, do=do or FakeSpeed(), draw=draw)
