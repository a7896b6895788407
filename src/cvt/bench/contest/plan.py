"""What a comparison is: who takes part, one recipe and one budget for all, and how many seeds.

The recipe is completed once, from data and device, and then given to every model alike.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cvt.bench.names import Contender, check_labels
from cvt.data import load_data
from cvt.errors import UserError
from cvt.plain import to_plain
from cvt.runtime import choose_device, choose_precision
from cvt.training.checkpoints import Identity
from cvt.training.config import USUAL, Layer, TrainConfig
from cvt.training.defaults import derive, measure, overlay, said
from cvt.training.setup import check_batch
from cvt.zoo.describe import Description, describe

# --- How much training each contender gets: epochs, images or minutes.

Unit = Literal["epochs", "images", "minutes"]

# Only images come by the thousand: the m of 10minutes is no million.
_PATTERN = re.compile(r"(\d[\d_,]*(?:\.\d+)?)\s*(?:(k|m)(?=\s*(?:image|picture)))?\s*([a-z]+)")
_UNITS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1),
    "image": ("images", 1),
    "picture": ("images", 1),
    "second": ("minutes", 1 / 60),
    "sec": ("minutes", 1 / 60),
    "s": ("minutes", 1 / 60),
    "minute": ("minutes", 1),
    "min": ("minutes", 1),
    "hour": ("minutes", 60),
    "h": ("minutes", 60),
}
_FACTORS = {None: 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount of training, the same for all contenders.

    Epochs and images give everyone as many updates of as many images. Minutes give everyone as
    much time in updates, waiting for images included and validation not: how many updates that
    is follows from each contender's pace, which is measured first, because the learning rate has
    to come down within them.
    """

    amount: float
    unit: Unit

    def updates(self, updates_per_epoch: int, batch_size: int) -> int | None:
        """Returns the number of updates, or None where that follows from the pace."""
        if self.unit == "minutes":
            return None
        per_unit = updates_per_epoch if self.unit == "epochs" else 1 / batch_size
        return self._at_least_one(self.amount * per_unit, f"with {batch_size} images each")

    def updates_at(self, seconds_per_update: float) -> int:
        """Returns how many updates of a pace fit into the minutes."""
        pace = f"when one takes {seconds_per_update:.2g} s"
        return self._at_least_one(self.amount * 60 / seconds_per_update, pace)

    def _at_least_one(self, updates: float, why: str) -> int:
        if updates < 1:
            raise UserError(
                f"Got a budget of {self}, which is less than one update {why}; give more."
            )
        return int(updates + 1e-9)  # 0.1 * 30 is three, whatever floats say

    def __str__(self) -> str:
        unit = self.unit.removesuffix("s") if self.amount == 1 else self.unit
        return f"{self.amount:,.10g} {unit}"

    @property
    def short(self) -> str:
        """The budget as one word, such as `3epochs`."""
        return f"{self.amount:.10g}{self.unit}"


def read_budget(text: str) -> Budget:
    """Reads `3epochs`, `20000 images`, `100k images`, `10min`, `2h`."""
    match = _PATTERN.fullmatch(text.strip().lower())
    word = match[3] if match else ""
    unit = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    if match is None or unit is None:
        raise UserError(
            f"Got budget {text!r}, expected epochs, images or minutes, as in 3epochs, "
            "20000images or 10minutes."
        )
    amount = float(match[1].replace("_", "").replace(",", "")) * _FACTORS[match[2]] * unit[1]
    if amount <= 0:
        raise UserError(f"Got budget {text!r}, expected more than zero; nothing can learn in it.")
    return Budget(amount=amount, unit=unit[0])


# --- What is asked for, and what follows from it.

# What each run is told for itself, and what else does not change what is computed.
_LENGTH = ("epochs", "updates", "minutes", "patience")
_OF_A_RUN = ("model", "model_args", "seed", "out", *_LENGTH, "resume", "force")
_FREE = ("data_dir", "download", "num_workers", "checkpoint_minutes", "keep_checkpoints")
# What needs weights to start from, which no contender has.
_OF_WEIGHTS = ("head", "fast")
# A schedule made for many epochs may not spend a short budget on warming up.
_MOST_WARM_UP = 0.1


@dataclass(frozen=True, kw_only=True)
class ContestConfig:
    """What is the same for all contenders.

    Args:
        recipe: Data, device, batch, image size, optimiser and augmentation for everyone. What is
            not said follows from data and device, never from a model; `model`, `model_args`,
            `seed`, `out` and what says how long are not read. Each row keeps its own stochastic
            depth unless `drop_path_rate` gives everyone the same.
        budget: Takes the place of epochs.
        seeds: How many: 0 to `seeds` - 1. A seed decides initial weights, order, augmentation and
            a cut-out validation split, the last three alike for all contenders.
        out: The results folder. One of the same comparison is gone on with.
        keep_runs: Keep the run folders, with their weights, when their figures are written down.
    """

    recipe: Layer
    budget: Budget
    seeds: int
    out: Path
    keep_runs: bool = True


@dataclass(frozen=True, kw_only=True)
class ContestPlan:
    """A comparison before anything is trained.

    Args:
        config: Complete; model and length are each run's own.
        identity: Of the data and the software.
        has_own_warm_up: Whether the caller said how long to warm up.
        updates_per_epoch: Full batches that the training images make.
        split: On which contenders are measured.
    """

    contenders: tuple[Contender, ...]
    budget: Budget
    seeds: int
    config: TrainConfig
    identity: Identity
    has_own_warm_up: bool
    num_classes: int
    updates_per_epoch: int
    split: str

    @property
    def updates(self) -> int | None:
        """How many updates everyone gets, or None where that depends on the pace."""
        return self.budget.updates(self.updates_per_epoch, self.config.batch_size)

    @property
    def facts(self) -> dict[str, Any]:
        """What the figures of all runs hold for."""
        return {
            "data": self.config.data,
            "classes": self.num_classes,
            "split": self.split,
            "num_images": self.identity.data[self.split][0],
            "budget": str(self.budget),
            "seeds": self.seeds,
            "image_size": self.config.image_size,
            "batch_size": self.config.batch_size,
            "device": self.config.device,
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns what makes a comparison the one that it is."""
        recipe = to_plain(self.config, leave_out=_OF_A_RUN + _FREE + _OF_WEIGHTS)
        warm_up = "as given" if self.has_own_warm_up else "at most a tenth of the run"
        return {
            "contenders": {each.label: each.to_dict() for each in self.contenders},
            "budget": str(self.budget),
            "seeds": self.seeds,
            "recipe": {**recipe, "warm_up": warm_up},
            **{name: to_plain(self.identity)[name] for name in ("data", "software")},
        }

    @cached_property
    def counts(self) -> dict[str, Description]:
        """What the trained networks count, by their labels."""
        networks = {each.label: replace(each, **self.network(each)) for each in self.contenders}
        side = self.config.image_size
        return {label: describe(of.model, side, spec=of.spec) for label, of in networks.items()}

    def network(self, contender: Contender) -> dict[str, Any]:
        """Returns name and changes of the network that is trained, for `create_model`."""
        args = {**self._args(contender), "num_classes": self.num_classes}
        return {"model": contender.model, "model_args": args}

    def _args(self, contender: Contender) -> dict[str, Any]:
        """A row's own position tables are made for the size at hand, not resized to it."""
        side = self.config.image_size
        return {"img_size": [side, side], **contender.model_args}

    def run_config(
        self, contender: Contender, seed: int, out: Path, updates: int | None
    ) -> dict[str, Any]:
        """Returns what one run is told, for `cvt.train(**...)`.

        Args:
            updates: Its length; None, where it is not known yet, leaves one epoch.
        """
        plain = self.config.to_dict()
        if updates and not self.has_own_warm_up:
            most = _MOST_WARM_UP * updates / self.updates_per_epoch
            plain["optim"]["warmup_epochs"] = min(self.config.optim.warmup_epochs, most)
        told = {
            **plain,
            "model": contender.model,
            "model_args": self._args(contender),
            "seed": seed,
            "out": str(out),
            **dict.fromkeys(_LENGTH),
            "epochs": None if updates else 1,
            "updates": updates,
            "keep_checkpoints": 1,
        }
        changes = said(contender.changes, f"what {contender.label} changes")
        return overlay(said(told, "the config"), changes)


def make_plan(contenders: Sequence[Contender], asked: ContestConfig) -> ContestPlan:
    """Looks at the data and completes the recipe, for the first contender as for all."""
    check_labels(contenders)
    if asked.seeds < 1:
        raise UserError(f"Got seeds {asked.seeds}, expected 1 or more; 3 show the spread.")
    weights = asked.recipe.get("weights")
    if weights or asked.recipe.get("freeze") == "backbone":
        what = f"weights {weights!r}" if weights else "freeze backbone"
        raise UserError(f"Got {what}, but a comparison trains all from scratch; leave it out.")
    recipe = {name: value for name, value in asked.recipe.items() if name not in _OF_A_RUN}
    recipe |= {"model": contenders[0].model, "seed": 0}
    usual = {**USUAL, **recipe}
    names = ("data_dir", "val_fraction", "seed", "download")
    splits = load_data(usual["data"], **{name: usual[name] for name in names})
    device = choose_device(usual["device"])
    config = derive(recipe, measure(splits), device)
    # One for all, and the same wherever a comparison goes on: nothing is tried.
    config = replace(config, precision=choose_precision(config.precision, device))
    check_batch(config, len(splits.train), 1)
    plan = ContestPlan(
        contenders=tuple(contenders),
        budget=asked.budget,
        seeds=asked.seeds,
        config=config,
        identity=Identity.of(splits, config.accum_steps),
        has_own_warm_up="warmup_epochs" in asked.recipe.get("optim", {}),
        num_classes=len(splits.classes),
        updates_per_epoch=len(splits.train) // config.batch_size,
        split="validation" if splits.test is None else "test",
    )
    _ = plan.updates, plan.counts  # refuse a budget, a model or a size that cannot be trained
    for each in contenders:
        plan.run_config(each, 0, asked.out, None)  # refuses changes that there are not
    return plan
