"""What a comparison came to: a row a run, and what several seeds of a contender say together."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cvt.bench.names import Contender
from cvt.bench.tables import Block
from cvt.training.config import TrainConfig
from cvt.training.screen import say_memory, say_value


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


# --- The sentences under a comparison's figures: what they mean, and what is missing.

TOP5_NEEDS = 6


def notes_of(
    standings: Sequence[Standing],
    facts: Mapping[str, Any],
    recipe: TrainConfig,
    measured: Mapping[str, Any],
) -> tuple[str, ...]:
    """Returns them in the order: accuracy, budget, sizes, speeds, memory, what is missing.

    Args:
        facts: Those of `Results`.
        recipe: What all runs were told, without gaps.
        measured: Paces and inference times, as the results folder keeps them.
    """
    notes = [
        _accuracy(facts),
        *_top5(facts),
        *_budget(standings, recipe, measured),
        "Parameters include a classifier for the data's classes and what is never trained; MACs "
        f"are those of one image of {facts['image_size']}x{facts['image_size']} pixels.",
        *_speeds(standings, recipe, measured),
        _memory(recipe),
        *_not_alike(standings),
        *_missing(standings),
    ]
    return tuple(notes)


def _accuracy(facts: Mapping[str, Any]) -> str:
    chosen = (
        "on the test pictures, with the weights of the epoch that was best on validation"
        if facts["split"] == "test"
        else "on the validation pictures by which the best epoch was chosen, as there is no test "
        "split, so it flatters all of them a little"
    )
    return (
        f"Top-1 is measured {chosen}; mean and sample standard deviation over the seeds, in "
        "brackets the smallest and the largest. A seed means the same order of the same pictures, "
        "varied alike, for every model."
    )


def _top5(facts: Mapping[str, Any]) -> list[str]:
    if facts["classes"] < TOP5_NEEDS:
        return [
            f"Top-5 is left out: {facts['data']} has {facts['classes']} classes, and it takes "
            f"{TOP5_NEEDS} for top-5 to say anything."
        ]
    if facts["split"] != "test":
        return ["Top-5 is left out: it is measured on a test split, and the data has none."]
    return []


def _budget(
    standings: Sequence[Standing], recipe: TrainConfig, measured: Mapping[str, Any]
) -> list[str]:
    paces = measured.get("paces", {})
    named = {each.label: paces[each.label]["updates"] for each in standings if each.label in paces}
    optim = recipe.optim
    words = (
        f"All learn by the same recipe: {optim.opt}, learning rate "
        f"{say_value(optim.lr)} at its peak, batches of {recipe.batch_size}."
    )
    if not named:
        updates = {run.updates for each in standings for run in each.runs if run.updates}
        if len(updates) == 1:
            words = f"{words[:-1]}, {updates.pop():,} updates."
        return [words]
    counts = ", ".join(f"{label} {updates:,}" for label, updates in named.items())
    return [
        words,
        "The budget is time in updates, waiting for pictures included and validation not; updates "
        f"follow from each model's pace, measured before: {counts}.",
    ]


def _speeds(
    standings: Sequence[Standing], recipe: TrainConfig, measured: Mapping[str, Any]
) -> list[str]:
    hardware = sorted({run.hardware for each in standings for run in each.runs if run.hardware})
    notes = [
        f"Training images/s: median over epochs and seeds, loading included, {recipe.precision} "
        f"on {'; '.join(hardware)}."
    ]
    if len(hardware) > 1:
        notes.append("The runs were made on different hardware: speeds and memory do not compare.")
    inference = measured.get("inference", {})
    if inference.get("images_per_s"):
        notes.append(
            f"Inference images/s: forward passes of {inference['batch_size']} images in memory, "
            f"eval mode, {recipe.precision} on {inference['hardware']}; the median of seven "
            "rounds in which the models took turns."
        )
    elif inference.get("error"):
        notes.append(f"Inference was not timed: {inference['error']}")
    return notes


def _memory(recipe: TrainConfig) -> str:
    if recipe.device.startswith("cuda"):
        return "Memory: the largest amount of the GPU's that a training run's tensors took."
    return (
        "Memory: the largest amount that a training run's process took, Python, torch and the "
        "data included."
    )


def _not_alike(standings: Sequence[Standing]) -> list[str]:
    return [
        f"{each.label} does not follow the common recipe alone, but with "
        f"{say_value(each.contender.changes)}."
        for each in standings
        if each.contender.changes
    ]


def _missing(standings: Sequence[Standing]) -> list[str]:
    bad = [run for each in standings for run in each.runs if run.bad]
    notes = []
    if bad:
        most = max(run.bad or 0 for run in bad)
        notes.append(f"Up to {most} images of a run could not be read and were skipped.")
    for each in standings:
        said: dict[str, list[int]] = {}
        for seed, error in each.errors.items():
            said.setdefault(error, []).append(seed)
        notes += [
            f"{each.label} failed with seed {', '.join(map(str, seeds))}: {error}"
            for error, seeds in said.items()
        ]
    return notes


# --- A comparison as a table, the best first.


def results_block(results: Results) -> Block:
    """Returns the table of the contenders; those without a finished run come last."""
    has_top5 = any(each.spread("top5") for each in results.standings)
    columns = ["Model", "Top-1 %", "Seeds", *["Top-5 %"] * has_top5, "Parameters", "MMACs",
               "Train images/s", "Inference images/s", "Memory"]  # fmt: skip
    return Block(
        title=say_contest(results.facts),
        columns=tuple(columns),
        rows=tuple(_cells(each, has_top5) for each in ranked(results.standings)),
        notes=results.notes,
    )


def say_contest(facts: Mapping[str, Any]) -> str:
    """Returns what the figures of `Results` hold for, in a line."""
    return (
        f"{facts['data']}, {facts['split']} split: {facts['budget']} each, "
        f"{facts['image_size']}x{facts['image_size']} pixels"
    )


def ranked(standings: Sequence[Standing]) -> list[Standing]:
    """Returns them by mean top-1, the highest first."""
    return sorted(standings, key=lambda each: -each.top1.mean if each.top1 else 1.0)


def say_spread(spread: Spread | None) -> str:
    """Returns `81.25 ± 0.31 (80.9 to 81.6)`; a single value stands by itself."""
    if spread is None:
        return "-"
    if spread.std is None:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} ± {spread.std:.2f} ({spread.min:.2f} to {spread.max:.2f})"


def _cells(standing: Standing, has_top5: bool) -> tuple[str, ...]:
    top1, top5 = standing.top1, standing.spread("top5")
    failed = len(standing.errors)
    seeds = str(top1.count if top1 else 0) + (f" ({failed} failed)" if failed else "")
    memory = standing.median("memory_mb")
    return (
        standing.label,
        say_spread(top1),
        seeds,
        *([f"{top5.mean:.2f}" if top5 else "-"] if has_top5 else []),
        f"{standing.num_params:,}",
        f"{standing.macs / 1e6:,.1f}",
        _per_s(standing.median("train_images_per_s")),
        _per_s(standing.inference_images_per_s),
        "-" if memory is None else say_memory(memory),
    )


def _per_s(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
