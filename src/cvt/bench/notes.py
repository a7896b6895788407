"""The sentences under a comparison's figures: what they mean, and what is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from cvt.bench.results import Standing
from cvt.train.config import TrainConfig
from cvt.train.settings import say_value

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
