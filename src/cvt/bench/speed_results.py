"""What the rounds of a bench say together."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cvt.bench.speed_case import Entrant, Setting
from cvt.bench.speed_measurement import Measurement
from cvt.bench.speed_plan import Plan

# Of a forward pass: a backward pass multiplies by the weights, and by what came in.
_PASSES = {"inference": 1, "training": 3}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Several measurements of one quantity."""

    count: int
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range | None":
        """Returns None where there are no values."""
        if not values:
            return None
        return cls(
            count=len(values), median=statistics.median(values), min=min(values), max=max(values)
        )


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """An entrant in a setting.

    Args:
        base: Whose images/s the ratio is to.
        images_per_s: Over the rounds; None where every one failed.
        ratio: Of its images/s to those of its base in the same round, over the rounds.
        ms: Of the median call.
        memory_mb: Median over the rounds.
        prepare_s: The longest of the rounds, as later ones may find what was compiled before.
        first_call_s: Likewise, with what making the form took before it.
        gflops: Operations of the model as it is written, in 10**9 a second.
        of_peak: That as a share of the fastest large matrix product of all rounds, in the same
            dtype and threads, on the same device.
        agreement: With float32, of the first round that has it, as `Measurement` says.
        logit_error: Likewise.
        judged_on: Likewise.
        error: What went wrong, if something did.
    """

    setting: Setting
    entrant: Entrant
    base: Entrant
    images_per_s: Range | None = None
    ratio: Range | None = None
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

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, flat as a line of a table is."""
        plain = {**asdict(self.setting), **asdict(self.entrant), "base": self.base.label}
        for name, spread in (("images_per_s", self.images_per_s), ("ratio", self.ratio)):
            for part in ("median", "min", "max"):
                key = name if part == "median" else f"{name}_{part}"
                plain[key] = getattr(spread, part) if spread else None
        plain["rounds"] = self.images_per_s.count if self.images_per_s else 0
        names = ("ms", "memory_mb", "prepare_s", "first_call_s", "gflops", "of_peak", "agreement",
                 "logit_error", "judged_on", "error")  # fmt: skip
        return {**plain, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class SpeedResults:
    """A whole bench.

    Args:
        rows: In the order of settings, and in each of the entrants.
        peaks: 10**9 operations a second of large matrix products, by device, dtype and threads.
        facts: What `speed_facts.find_facts` found, with the command and how it was measured.
        base_words: What tables call the base.
    """

    rows: tuple[SpeedRow, ...]
    peaks: Mapping[tuple[str, str, int], float]
    facts: Mapping[str, Any]
    base_words: str

    @property
    def has_failures(self) -> bool:
        """Whether something went wrong somewhere."""
        return any(row.error for row in self.rows)

    def of(self, setting: Setting) -> list[SpeedRow]:
        """Returns the rows of a setting."""
        return [row for row in self.rows if row.setting == setting]

    @property
    def settings(self) -> list[Setting]:
        """The settings, in order."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            **self.facts,
            "peak_gflops": {f"{d}, {t}, {n} threads": x for (d, t, n), x in self.peaks.items()},
            "rows": [row.to_dict() for row in self.rows],
        }


def sum_up(
    plan: Plan,
    settings: Sequence[Setting],
    measured: Sequence[Measurement],
    facts: Mapping[str, Any],
) -> SpeedResults:
    """Works out medians, spreads and ratios from the single measurements."""
    peaks: dict[tuple[str, str, int], float] = {}
    for each in measured:
        if each.peak_gflops is not None:
            key = (each.device, each.dtype, each.threads)
            peaks[key] = max(peaks.get(key, 0.0), each.peak_gflops)
    rows = []
    for setting in settings:
        there = [each for each in measured if each.setting == setting]
        for entrant in plan.entrants_of(setting.task):
            macs = facts["models"][entrant.model]["macs"].get(str(setting.image_size))
            peak = peaks.get((setting.device, entrant.dtype, setting.threads))
            rows.append(_row(setting, entrant, plan.bases[entrant], there, macs, peak))
    return SpeedResults(rows=tuple(rows), peaks=peaks, facts=facts, base_words=plan.base_words)


def _row(
    setting: Setting,
    entrant: Entrant,
    base: Entrant,
    there: Sequence[Measurement],
    macs: int | None,
    peak: float | None,
) -> SpeedRow:
    own = [each for each in there if each.entrant == entrant and each.is_finished]
    errors = [each.error for each in there if each.entrant == entrant and each.error]
    rates, theirs = _rates(there, entrant), _rates(there, base)
    speed = Range.of(list(rates.values()))
    gflops = speed.median * 2 * macs * _PASSES[setting.task] / 1e9 if speed and macs else None
    prepared = [each.prepare_s or 0.0 for each in own]
    firsts = [(each.first_call_s or 0.0) + (each.prepare_s or 0.0) for each in own]
    memory = [each.memory_mb for each in own if each.memory_mb is not None]
    judged = next((each for each in own if each.agreement is not None), None)
    return SpeedRow(
        setting=setting,
        entrant=entrant,
        base=base,
        images_per_s=speed,
        ratio=Range.of([rates[i] / theirs[i] for i in rates if i in theirs]),
        ms=1000 * setting.batch_size / speed.median if speed else None,
        memory_mb=statistics.median(memory) if memory else None,
        prepare_s=max(prepared, default=None),
        first_call_s=max(firsts, default=None),
        gflops=gflops,
        of_peak=gflops / peak if gflops and peak else None,
        agreement=judged.agreement if judged else None,
        logit_error=judged.logit_error if judged else None,
        judged_on=judged.judged_on if judged else None,
        error=errors[0] if errors else "",
    )


def _rates(there: Sequence[Measurement], entrant: Entrant) -> dict[int, float]:
    """Images/s by round."""
    return {
        each.round: each.images_per_s
        for each in there
        if each.entrant == entrant and each.images_per_s is not None
    }
