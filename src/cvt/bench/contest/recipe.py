"""One recipe for all: filled in once from data and device, then given to every model alike."""

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, cast

from cvt.bench.names import Contender
from cvt.data import Batch, DataSplits, load_data
from cvt.errors import UserError
from cvt.plain import to_plain
from cvt.runtime import ALONE, choose_device, choose_precision
from cvt.systems.catalog import row_of
from cvt.training.checkpoints import Identity
from cvt.training.config import USUAL, Layer, TrainConfig
from cvt.training.defaults import derive, measure, overlay, said
from cvt.training.loop import make_update
from cvt.training.network import set_train_mode
from cvt.training.setup import Run, check_batch, prepare
from cvt.zoo.describe import describe

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
        """Returns the number of updates, or None where that follows from the pace.

        Raises:
            UserError: It is none.
        """
        if self.unit == "minutes":
            return None
        per_unit = updates_per_epoch if self.unit == "epochs" else 1 / batch_size
        return self._at_least_one(self.amount * per_unit, f"with {batch_size} images each")

    def updates_at(self, seconds_per_update: float) -> int:
        """Returns how many updates of a pace fit into the minutes.

        Raises:
            UserError: Not a single one.
        """
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
    """Reads `3epochs`, `20000 images`, `100k images`, `10min`, `2h`.

    Raises:
        UserError: It is none of these, or zero.
    """
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


# What may differ when a comparison goes on, because it does not change what is computed.
_FREE = ("model", "model_args", "seed", "out", "epochs", "updates", "resume", "force", "data_dir",
         "download", "num_workers", "checkpoint_minutes", "keep_checkpoints")  # fmt: skip
# What each run is told for itself.
_OF_A_RUN = ("model", "model_args", "seed", "out", "epochs", "updates", "resume", "force")
# A schedule made for many epochs may not spend a short budget on warming up.
_MOST_WARM_UP = 0.1


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A contender's size, with a classifier for the data at hand, at the size trained at."""

    num_params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class SharedRecipe:
    """What holds for every run.

    Args:
        config: Complete; model and length are each run's own.
        identity: Of the data and the software.
        has_own_warm_up: Whether the caller said how long to warm up.
        updates_per_epoch: Full batches that the training pictures make.
        split: On which contenders are measured.
    """

    config: TrainConfig
    identity: Identity
    has_own_warm_up: bool
    num_classes: int
    updates_per_epoch: int
    split: str

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
            "epochs": None if updates else 1,
            "updates": updates,
            "keep_checkpoints": 1,
        }
        changes = said(contender.changes, f"what {contender.label} changes")
        return overlay(said(told, "the config"), changes)

    def updates(self, budget: Budget) -> int | None:
        """Returns how many updates everyone gets, or None where that depends on the pace."""
        return budget.updates(self.updates_per_epoch, self.config.batch_size)

    def count(self, contender: Contender) -> Counts:
        """Counts a contender.

        Raises:
            UserError: There is no such model or field (the nearest is named), or its grid does not
                allow the images' size.
        """
        self.run_config(contender, 0, Path("unused"), None)
        spec = row_of(contender.model).change(**self.network(contender)["model_args"])
        sheet = describe(contender.model, self.config.image_size, spec=spec)
        return Counts(num_params=sheet.num_params, macs=sheet.macs)

    def network(self, contender: Contender) -> dict[str, Any]:
        """Returns name and changes of the network that is trained, for `create_model`."""
        args = {**self._args(contender), "num_classes": self.num_classes}
        return {"model": contender.model, "model_args": args}

    def to_dict(self) -> dict[str, Any]:
        """Returns what makes a comparison the one that it is, besides who takes part."""
        recipe = {name: value for name, value in self.config.to_dict().items() if name not in _FREE}
        warm_up = "as given" if self.has_own_warm_up else "at most a tenth of the run"
        return {
            "recipe": {**recipe, "warm_up": warm_up},
            **{name: to_plain(self.identity)[name] for name in ("data", "software")},
        }

    def _args(self, contender: Contender) -> dict[str, Any]:
        """A row's own position tables are made for the size at hand, not resized to it."""
        side = self.config.image_size
        return {"img_size": [side, side], **contender.model_args}


def share(recipe: Layer, contenders: Sequence[Contender]) -> SharedRecipe:
    """Looks at the data and completes the recipe, for the first contender as for all."""
    weights = recipe.get("weights")
    if weights or recipe.get("freeze") == "backbone":
        what = f"weights {weights!r}" if weights else "freeze backbone"
        raise UserError(f"Got {what}, but a comparison trains all from scratch; leave it out.")
    asked = {name: value for name, value in recipe.items() if name not in _OF_A_RUN}
    asked |= {"model": contenders[0].model, "seed": 0}
    told = {**USUAL, **asked}
    splits = load_data(
        told["data"],
        data_dir=told["data_dir"],
        val_fraction=told["val_fraction"],
        seed=told["seed"],
        download=told["download"],
    )
    device = choose_device(told["device"])
    config = derive(asked, measure(splits), device)
    # One for all, and the same wherever a comparison goes on: nothing is tried.
    config = replace(config, precision=cast("Any", choose_precision(config.precision, device)))
    check_batch(config, len(splits.train), 1)
    return SharedRecipe(
        config=config,
        identity=Identity.of(splits, config.accum_steps),
        has_own_warm_up="warmup_epochs" in recipe.get("optim", {}),
        num_classes=len(splits.classes),
        updates_per_epoch=len(splits.train) // config.batch_size,
        split=_split(splits),
    )


def _split(splits: DataSplits) -> str:
    return "validation" if splits.test is None else "test"


# --- How long an update takes, measured on a throw-away model before the clock of a budget starts.

WARM_UP = 5
UPDATES = 40
LONGEST_S = 20.0
FEWEST = 3


def seconds_per_update(asked: Layer) -> float:
    """Makes updates as a run that is told this would, waiting for images included, and times them.

    The mean over up to 40 updates or 20 seconds, after five that are not counted.

    Raises:
        UserError: The model or the data cannot be used.
        NonFinite: The loss or the gradient is not finite.
    """
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        job = prepare({**asked, "out": str(Path(folder) / "run")}, ALONE)
        set_train_mode(job.network.model, job.config.freeze)
        batches = _endless(job)
        for chunks in islice(batches, WARM_UP):
            make_update(job, chunks)
        since, made = time.monotonic(), 0
        while made < UPDATES and (made < FEWEST or time.monotonic() - since < LONGEST_S):
            make_update(job, next(batches))
            made += 1
        return (time.monotonic() - since) / made


def _endless(job: Run) -> Iterator[list[Batch]]:
    """Goes through epoch after epoch, in batches of as many chunks as the config says."""
    for epoch in count():
        job.progress.epoch = epoch
        batches = iter(job.train_loader())
        while chunks := list(islice(batches, job.config.accum_steps)):
            yield chunks
