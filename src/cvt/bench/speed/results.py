"""What was measured: by one process, and what the rounds of a bench say together.

A column of `cvt bench` is made here and in `measure`: a field of `Measurement`, which `measure`
fills, a field of `SpeedResult` with how the rounds come to it, and a line of `COLUMNS`.
"""

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

from cvt.bench.speed.plan import BenchConfig, Case, Entrant, Plan, Setting
from cvt.plain import NOT_FINITE
from cvt.tables import Table
from cvt.training.screen import say_memory

# Of a forward pass: a backward pass multiplies by the weights, and by what came in.
_PASSES = {"inference": 1, "training": 3}


@dataclass(frozen=True, kw_only=True)
class Measurement(Case):
    """What one process came to.

    Args:
        round: From 1.
        images_per_s: At the median call; None where it failed.
        calls: Number of timed calls.
        prepare_s: Time to make the form.
        first_call_s: Time of the first call after that.
        memory_mb: Peak of the timed calls, above what the ready model takes.
        peak_gflops: Rate of large matrix products in the same dtype and threads, in 10**9
            operations a second; None for int8.
        agreement: For how many of `judged_on` images it names the class that float32 does, in %.
        logit_error: The mean error of its logits, in units of their spread.
        load: The machine's load average over the minute before, its own last process included.
        date: When it began, in UTC.
        error: What went wrong, if it failed.
    """

    round: int
    images_per_s: float | None = None
    calls: int | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    memory_mb: float | None = None
    peak_gflops: float | None = None
    agreement: float | None = None
    logit_error: Annotated[float, NOT_FINITE] | None = None
    judged_on: int | None = None
    load: float | None = None
    date: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[Setting, Entrant, int]:
        """What it is of."""
        return self.setting, self.entrant, self.round

    @property
    def is_finished(self) -> bool:
        """Whether it went well."""
        return self.images_per_s is not None


@dataclass(frozen=True, kw_only=True)
class SpeedResult(Case):
    """What the rounds say of an entrant in a setting; None where none has gone well.

    Args:
        base: Whose images/s the ratio is to.
        images_per_s: The median over the rounds, beside their smallest and largest.
        ratio: Of its images/s to those of its base in the same round; likewise.
        rounds: Number of rounds that went well.
        ms: Time of the median call.
        memory_mb: Median over the rounds.
        prepare_s: The longest of the rounds, as later ones may find what was compiled before.
        first_call_s: Likewise, `prepare_s` included.
        gflops: Operations of the model as it is written, in 10**9 a second.
        of_peak: That as a share of the fastest large matrix product of all rounds, in the same
            dtype and threads, on the same device.
        agreement: As in `Measurement`, of the first round that has it; so are the next two.
        error: What went wrong, if something did.
    """

    base: str
    images_per_s: float | None = None
    images_per_s_min: float | None = None
    images_per_s_max: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    rounds: int = 0
    ms: float | None = None
    memory_mb: float | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    gflops: float | None = None
    of_peak: float | None = None
    agreement: float | None = None
    logit_error: float | None = None
    judged_on: int | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class BenchFacts:
    """What the machine has, and what the models count.

    Args:
        lacking: By device, and there by dtype, why nothing can be measured in it.
        threads: Numbers of them to measure with.
        models: By name `num_params`, by image size `macs` for one image (None where they cannot be
            counted), and of a checkpoint a digest of its `weights`.
    """

    devices: list[str]
    lacking: dict[str, dict[str, str]]
    threads: list[int]
    hardware: dict[str, str]
    software: dict[str, str]
    environment: dict[str, str]
    models: dict[str, dict[str, Any]]

    @property
    def weights(self) -> dict[str, str]:
        """The digests of the checkpoints among the models."""
        return {name: each["weights"] for name, each in self.models.items() if "weights" in each}


@dataclass(frozen=True, kw_only=True)
class SpeedResults:
    """A whole bench: what was measured in it so far, and what follows from that."""

    config: BenchConfig
    plan: Plan
    settings: Sequence[Setting]
    facts: BenchFacts
    measured: Sequence[Measurement]

    @cached_property
    def peaks(self) -> dict[tuple[str, str, int], float]:
        """The fastest large matrix products, in 10**9/s, by device, dtype and threads."""
        found: dict[tuple[str, str, int], float] = {}
        for each in self.measured:
            if each.peak_gflops is not None:
                key = (each.device, each.dtype, each.threads)
                found[key] = max(found.get(key, 0.0), each.peak_gflops)
        return found

    @cached_property
    def by_setting(self) -> dict[Setting, list[SpeedResult]]:
        """Medians, spreads and ratios of the entrants in each setting."""
        return {
            setting: [self._result(setting, each) for each in self.plan.entrants_of(setting.task)]
            for setting in self.settings
        }

    @property
    def rows(self) -> list[SpeedResult]:
        """All of these."""
        return [row for rows in self.by_setting.values() for row in rows]

    @property
    def has_failures(self) -> bool:
        """Whether something went wrong somewhere."""
        return any(row.error for row in self.rows)

    def _result(self, setting: Setting, entrant: Entrant) -> SpeedResult:
        there = [each for each in self.measured if each.setting == setting]
        own = [each for each in there if each.entrant == entrant]
        good = [each for each in own if each.is_finished]
        base = self.plan.bases[entrant]
        rates, theirs = _rates(there, entrant), _rates(there, base)
        speed = _over(statistics.median, rates.values())
        macs = self.facts.models[entrant.model]["macs"].get(str(setting.image_size))
        gflops = speed * 2 * macs * _PASSES[setting.task] / 1e9 if speed and macs else None
        peak = self.peaks.get((setting.device, entrant.dtype, setting.threads))
        judged = next((each for each in good if each.agreement is not None), None)
        return SpeedResult(
            **asdict(setting),
            **asdict(entrant),
            base=base.label,
            **_spread("images_per_s", rates.values()),
            **_spread("ratio", [rates[i] / theirs[i] for i in rates if i in theirs]),
            rounds=len(rates),
            ms=1000 * setting.batch_size / speed if speed else None,
            memory_mb=_over(statistics.median, (each.memory_mb for each in good)),
            prepare_s=_over(max, (each.prepare_s for each in good)),
            first_call_s=_over(
                max, ((each.first_call_s or 0.0) + (each.prepare_s or 0.0) for each in good)
            ),
            gflops=gflops,
            of_peak=gflops / peak if gflops and peak else None,
            agreement=judged.agreement if judged else None,
            logit_error=judged.logit_error if judged else None,
            judged_on=judged.judged_on if judged else None,
            error=next((each.error for each in own if each.error), ""),
        )

    @property
    def tables(self) -> list[Table]:
        """A table for each setting."""
        columns = dict(COLUMNS)
        if any(row.agreement is not None for row in self.rows):
            columns[AGREEMENT] = lambda result: _say(result.agreement, "{:.1f} %".format)
        return [
            Table.of(rows, columns, setting.words[0].upper() + setting.words[1:])
            for setting, rows in self.by_setting.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "command": self.config.command,
            "seconds": self.config.seconds,
            "calibration": self.config.calibration,
            **asdict(self.facts),
            "peak_gflops": {f"{d}, {t}, {n} threads": x for (d, t, n), x in self.peaks.items()},
            "rows": [asdict(row) for row in self.rows],
        }


def _rates(there: Sequence[Measurement], entrant: Entrant) -> dict[int, float]:
    """Images/s by round."""
    return {
        each.round: each.images_per_s
        for each in there
        if each.entrant == entrant and each.images_per_s is not None
    }


def _over(sum_up: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum_up(known) if known else None


def _spread(name: str, values: Collection[float]) -> dict[str, float | None]:
    ways = {"": statistics.median, "_min": min, "_max": max}
    return {name + end: _over(way, values) for end, way in ways.items()}


# --- As it is printed.


def say_rate(rate: float) -> str:
    """Returns a rate with three digits at least: `9.13`, `56.1`, `1,234`."""
    return f"{rate:.2f}" if rate < 10 else f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"


def _say(value: float | None, say: Callable[[float], str]) -> str:
    return "-" if value is None else say(value)


def _say_spread(result: SpeedResult, name: str, say: Callable[[float], str]) -> str:
    median, low, high = (getattr(result, name + end) for end in ("", "_min", "_max"))
    if median is None:
        return "-"
    return say(median) if result.rounds == 1 else f"{say(median)} ({say(low)} to {say(high)})"


def _say_speed(result: SpeedResult) -> str:
    if result.images_per_s is None and result.error:
        return "failed"
    return _say_spread(result, "images_per_s", say_rate)


COLUMNS: Mapping[str, str | Callable[[SpeedResult], str]] = {
    "Entry": "label",
    "Images/s": _say_speed,
    "ms": lambda result: _say(result.ms, say_rate),
    "Ratio": lambda result: _say_spread(result, "ratio", "{:.2f}".format),
    "Memory above the model": lambda result: _say(result.memory_mb, say_memory),
    "First call": lambda result: _say(result.first_call_s, "{:.2f} s".format),
    "Of peak": lambda result: _say(result.of_peak, lambda share: f"{100 * share:.0f} %"),
}
AGREEMENT = "As float32"
