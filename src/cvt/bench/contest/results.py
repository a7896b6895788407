"""What a comparison came to: a row a run, and what the seeds of a contender say together."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cvt.bench.contest.plan import ContestPlan
from cvt.bench.names import Contender
from cvt.plain import to_plain
from cvt.tables import Table
from cvt.training.config import TrainConfig
from cvt.training.screen import say_memory, say_value


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run; accuracies in percent, memory in MB of 2**20 bytes, time in seconds.

    Args:
        top1: On the split that counts: test if the data has one, else validation. None: failed.
        top5: On the same split, where the data has one for the test and more than five classes.
        val_top1: On validation, of the epoch whose weights were kept.
        updates: Updates that the run was given.
        images: That they saw.
        train_images_per_s: Median over its epochs.
        memory_mb: Its process's or GPU's peak.
        seconds: In updates, without validation.
        hardware: What it was trained on.
        bad: Images that could not be read and were left out.
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
    def key(self) -> tuple[str, int]:
        """Whose run it is."""
        return self.label, self.seed

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
    def of(cls, values: Sequence[float]) -> "Spread | None":
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

    def __str__(self) -> str:
        """`81.25 ± 0.31 (80.9 to 81.6)`; a single value stands by itself."""
        if self.std is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.std:.2f} ({self.min:.2f} to {self.max:.2f})"


@dataclass(frozen=True, kw_only=True)
class ContenderResult:
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
    runs: tuple[RunResult, ...] = ()
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
        return Spread.of(self._finished("top1"))

    @property
    def top5(self) -> Spread | None:
        """Over the seeds; None where it was not measured."""
        return Spread.of(self._finished("top5"))

    @property
    def train_images_per_s(self) -> float | None:
        """Median over the seeds."""
        return _median(self._finished("train_images_per_s"))

    @property
    def memory_mb(self) -> float | None:
        """Median over the seeds."""
        return _median(self._finished("memory_mb"))

    def _finished(self, quantity: str) -> list[float]:
        found = [getattr(run, quantity) for run in self.runs if run.is_finished]
        return [value for value in found if value is not None]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        plain = {
            "label": self.label,
            **self.contender.to_dict(),
            "num_params": self.num_params,
            "macs": self.macs,
            "top1": asdict(self.top1) if self.top1 else None,
            "top5": asdict(self.top5) if self.top5 else None,
            "train_images_per_s": self.train_images_per_s,
            "inference_images_per_s": self.inference_images_per_s,
            "memory_mb": self.memory_mb,
            "runs": [to_plain(run, none=False) for run in self.runs],
        }
        return {name: value for name, value in plain.items() if value is not None}


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


@dataclass(frozen=True, kw_only=True)
class ContestResults:
    """A whole comparison.

    Args:
        contenders: In the order in which they were given.
        facts: What the figures hold for: data, split, budget, seeds, image size, device.
        notes: Sentences that belong under the figures.
    """

    contenders: tuple[ContenderResult, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def of(self, label: str) -> ContenderResult:
        """Returns that of the contender of this label."""
        return next(each for each in self.contenders if each.label == label)

    @property
    def has_failures(self) -> bool:
        """Whether a run failed."""
        return any(each.errors for each in self.contenders)

    @property
    def ranked(self) -> list[ContenderResult]:
        """The contenders by mean top-1, the highest first; those without a finished run last."""
        return sorted(self.contenders, key=lambda each: -each.top1.mean if each.top1 else 1.0)

    @property
    def title(self) -> str:
        """What the figures hold for, in a line."""
        side = self.facts["image_size"]
        return (
            f"{self.facts['data']}, {self.facts['split']} split: {self.facts['budget']} each, "
            f"{side}x{side} pixels"
        )

    @property
    def table(self) -> Table:
        """The best stand first."""
        columns = dict(_COLUMNS)
        if not any(each.top5 for each in self.contenders):
            del columns["Top-5 %"]
        return Table.of(self.ranked, columns, self.title, self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "contenders": [each.to_dict() for each in self.contenders],
        }


def _say_seeds(result: ContenderResult) -> str:
    failed = f" ({len(result.errors)} failed)" if result.errors else ""
    return f"{len(result.scores)}{failed}"


_COLUMNS: dict[str, str | Callable[[ContenderResult], object]] = {
    "Model": "label",
    "Top-1 %": "top1",
    "Seeds": _say_seeds,
    "Top-5 %": lambda each: each.top5 and f"{each.top5.mean:.2f}",
    "Parameters": "num_params:,",
    "MMACs": lambda each: f"{each.macs / 1e6:,.1f}",
    "Train images/s": "train_images_per_s:,.0f",
    "Inference images/s": "inference_images_per_s:,.0f",
    "Memory": lambda each: None if each.memory_mb is None else say_memory(each.memory_mb),
}


# --- From runs to results.


@dataclass(frozen=True)
class Allowance:
    """How quickly a contender learns, measured once, and how many updates a budget is at it."""

    seconds_per_update: float
    updates: int


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Forward passes of all contenders with a finished run, which took turns.

    Args:
        labels: Whose.
        hardware: Where.
        images_per_s: By label; of those that had room.
        error: Why there are none.
    """

    labels: list[str]
    batch_size: int
    hardware: str
    images_per_s: dict[str, float] | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured beside the runs."""

    paces: dict[str, Allowance] = field(default_factory=dict)
    inference: Inference | None = None


def sum_up(plan: ContestPlan, rows: Sequence[RunResult], measured: Measured) -> ContestResults:
    """Puts together what was measured of each contender, and says what it means."""
    found = {row.key: row for row in rows}
    rates = measured.inference.images_per_s if measured.inference else None
    contenders = tuple(
        ContenderResult(
            contender=each,
            num_params=plan.counts[each.label].num_params,
            macs=plan.counts[each.label].macs,
            runs=tuple(
                found[each.label, seed] for seed in range(plan.seeds) if (each.label, seed) in found
            ),
            inference_images_per_s=(rates or {}).get(each.label),
        )
        for each in plan.contenders
    )
    notes = notes_of(contenders, plan.facts, plan.config, measured)
    return ContestResults(contenders=contenders, facts=plan.facts, notes=notes)


# --- The sentences under the figures: what they mean, and what is missing.

TOP5_NEEDS = 6


def notes_of(
    contenders: Sequence[ContenderResult],
    facts: Mapping[str, Any],
    config: TrainConfig,
    measured: Measured,
) -> tuple[str, ...]:
    """Returns them in the order: accuracy, budget, sizes, speeds, memory, what is missing.

    Args:
        config: What all runs were told.
    """
    side = facts["image_size"]
    return (
        *_accuracy(facts),
        *_budget(contenders, config, measured),
        "Parameters include a classifier for the data's classes and what is never trained; MACs "
        f"are those of one image of {side}x{side} pixels.",
        *_speeds(contenders, config, measured),
        "Memory: the largest amount of the GPU's that a training run's tensors took."
        if config.device.startswith("cuda")
        else "Memory: the largest amount that a training run's process took, Python, torch and "
        "the data included.",
        *_exceptions(contenders),
    )


def _accuracy(facts: Mapping[str, Any]) -> list[str]:
    is_test = facts["split"] == "test"
    chosen = (
        "on the test images, with the weights of the epoch that was best on validation"
        if is_test
        else "on the validation images by which the best epoch was chosen, as there is no test "
        "split, so it flatters all of them a little"
    )
    notes = [
        f"Top-1 is measured {chosen}; mean and sample standard deviation over the seeds, in "
        "brackets the smallest and the largest. A seed means the same order of the same images, "
        "varied alike, for every model."
    ]
    if facts["classes"] < TOP5_NEEDS:
        notes.append(
            f"Top-5 is left out: {facts['data']} has {facts['classes']} classes, and it takes "
            f"{TOP5_NEEDS} for top-5 to say anything."
        )
    elif not is_test:
        notes.append("Top-5 is left out: it is measured on a test split, and the data has none.")
    return notes


def _budget(
    contenders: Sequence[ContenderResult], config: TrainConfig, measured: Measured
) -> list[str]:
    recipe = (
        f"All learn by the same recipe: {config.optim.opt}, learning rate "
        f"{say_value(config.optim.lr)} at its peak, batches of {config.batch_size}"
    )
    paces = [each.label for each in contenders if each.label in measured.paces]
    if paces:
        counts = ", ".join(f"{label} {measured.paces[label].updates:,}" for label in paces)
        return [
            f"{recipe}.",
            "The budget is time in updates, waiting for images included and validation not; "
            f"updates follow from each model's pace, measured before: {counts}.",
        ]
    updates = {run.updates for each in contenders for run in each.runs if run.updates}
    return [f"{recipe}, {updates.pop():,} updates." if len(updates) == 1 else f"{recipe}."]


def _speeds(
    contenders: Sequence[ContenderResult], config: TrainConfig, measured: Measured
) -> list[str]:
    hardware = sorted({run.hardware for each in contenders for run in each.runs if run.hardware})
    notes = [
        f"Training images/s: median over epochs and seeds, loading included, {config.precision} "
        f"on {'; '.join(hardware)}."
    ]
    if len(hardware) > 1:
        notes.append("The runs were made on different hardware: speeds and memory do not compare.")
    timed = measured.inference
    if timed and timed.images_per_s:
        notes.append(
            f"Inference images/s: forward passes of {timed.batch_size} images in memory, eval "
            f"mode, {config.precision} on {timed.hardware}; the median of seven rounds in which "
            "the models took turns."
        )
    elif timed and timed.error:
        notes.append(f"Inference was not timed: {timed.error}")
    return notes


def _exceptions(contenders: Sequence[ContenderResult]) -> list[str]:
    notes = [
        f"{each.label} does not follow the common recipe alone, but with "
        f"{say_value(each.contender.changes)}."
        for each in contenders
        if each.contender.changes
    ]
    bad = max((run.bad or 0 for each in contenders for run in each.runs), default=0)
    if bad:
        notes.append(f"Up to {bad} images of a run could not be read and were skipped.")
    for each in contenders:
        for error in dict.fromkeys(each.errors.values()):
            seeds = ", ".join(str(seed) for seed, said in each.errors.items() if said == error)
            notes.append(f"{each.label} failed with seed {seeds}: {error}")
    return notes
