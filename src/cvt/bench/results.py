"""What a comparison came to: a row a run, and what several seeds of a contender say together."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cvt.bench.contender import Contender


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run; accuracies in percent, memory in MB of 2**20 bytes, time in seconds.

    Args:
        top1: On the split that counts: test if the data has one, else validation. None: failed.
        top5: On the same split, where the data has one for the test and more than five classes.
        val_top1: On validation, of the epoch whose weights were kept.
        updates: Updates that the run was given.
        images: Pictures that they saw.
        train_images_per_s: Median over its epochs.
        memory_mb: Its process's or GPU's peak.
        seconds: In updates, without validation.
        hardware: What it was trained on.
        bad: Pictures that could not be read and were left out.
        error: What went wrong, if it failed.
    """

    label: str
    seed: int
    top1: float | None = None
    top5: float | None = None
    val_top1: float | None = None
    updates: int | None = None
    images: int | None = None
    train_images_per_s: float | None = None
    memory_mb: float | None = None
    seconds: float | None = None
    hardware: str = ""
    bad: int | None = None
    error: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.top1 is not None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Several measurements of one quantity.

    Args:
        std: Sample standard deviation (n - 1); None for a single value.
    """

    count: int
    mean: float
    std: float | None
    min: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread | None":
        """Returns None where there are no values."""
        if not values:
            return None
        return cls(
            count=len(values),
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else None,
            min=min(values),
            max=max(values),
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A contender with all that was measured of it.

    Args:
        num_params: With a classifier for the data's classes, frozen ones included.
        macs: Multiply-accumulates for one image of the size that was trained at.
        runs: One a seed, in their order, failed ones included; seeds not run yet are not there.
        inference_images_per_s: Median; None where it was not measured.
    """

    contender: Contender
    num_params: int
    macs: int
    runs: tuple[Outcome, ...] = ()
    inference_images_per_s: float | None = None

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.contender.label

    @property
    def scores(self) -> dict[int, float]:
        """Top-1 in percent by seed, of the finished runs: what pairs it with another."""
        return {run.seed: run.top1 for run in self.runs if run.top1 is not None}

    @property
    def errors(self) -> dict[int, str]:
        """What went wrong, by seed."""
        return {run.seed: run.error for run in self.runs if run.error}

    @property
    def top1(self) -> Spread | None:
        """Over the seeds; None if no run was finished."""
        return self.spread("top1")

    def spread(self, quantity: str) -> Spread | None:
        """Returns what the finished runs say about a field of `Outcome`."""
        found = [getattr(run, quantity) for run in self.runs if run.is_finished]
        return Spread.of([value for value in found if value is not None])

    def median(self, quantity: str) -> float | None:
        """Returns the median over the finished runs of a field of `Outcome`."""
        found = [getattr(run, quantity) for run in self.runs if run.is_finished]
        values = [value for value in found if value is not None]
        return statistics.median(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        top1, top5 = self.top1, self.spread("top5")
        plain = {
            "label": self.label,
            **self.contender.to_dict(),
            "num_params": self.num_params,
            "macs": self.macs,
            "top1": asdict(top1) if top1 else None,
            "top5": asdict(top5) if top5 else None,
            "train_images_per_s": self.median("train_images_per_s"),
            "inference_images_per_s": self.inference_images_per_s,
            "memory_mb": self.median("memory_mb"),
            "runs": [_without_none(asdict(run)) for run in self.runs],
        }
        return _without_none(plain)


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole comparison.

    Args:
        standings: In the order in which the contenders were given.
        facts: What the figures hold for: data, split, budget, seeds, image size, device, software.
        notes: Sentences that belong under the figures.
    """

    standings: tuple[Standing, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def of(self, label: str) -> Standing:
        """Returns the standing of the contender of this label."""
        return next(each for each in self.standings if each.label == label)

    @property
    def has_failures(self) -> bool:
        """Whether a run failed."""
        return any(each.errors for each in self.standings)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "contenders": [each.to_dict() for each in self.standings],
        }


def _without_none(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if value is not None}
