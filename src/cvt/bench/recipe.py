"""One recipe for all: filled in once from data and device, then given to every model alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from cvt.bench.budget import Budget
from cvt.bench.contender import Contender
from cvt.data import DataSplits, load_data
from cvt.errors import UserError
from cvt.systems.catalog import row_of
from cvt.train.config import TrainConfig, known
from cvt.train.defaults import derive, measure
from cvt.train.device import choose_device, choose_precision
from cvt.train.identity import Identity
from cvt.train.recipes import overlay
from cvt.train.setup import check_batch
from cvt.zoo.describe import describe

# What may differ when a comparison goes on, because it does not change what is computed.
_FREE = ("model", "model_args", "seed", "out", "epochs", "updates", "resume", "force", "data_dir",
         "download", "num_workers", "checkpoint_minutes", "keep_checkpoints")  # fmt: skip
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
        config: Without gaps, but for the model and the length.
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
    ) -> TrainConfig:
        """Returns what one run is told.

        Args:
            updates: Its length; None, where it is not known yet, leaves one epoch.

        Raises:
            UserError: What the contender changes is no field of a config, or has a wrong value.
        """
        optim = self.config.optim
        if updates and not self.has_own_warm_up:
            most = _MOST_WARM_UP * updates / self.updates_per_epoch
            optim = replace(optim, warmup_epochs=min(known(optim.warmup_epochs), most))
        config = replace(
            self.config,
            model=contender.model,
            model_args=self._args(contender),
            optim=optim,
            seed=seed,
            out=str(out),
            epochs=None if updates else 1,
            updates=updates,
            keep_checkpoints=1,
        )
        if not contender.changes:
            return config
        return TrainConfig.from_dict(overlay(config.to_dict(), contender.changes))

    def updates(self, budget: Budget) -> int | None:
        """Returns how many updates everyone gets, or None where that depends on the pace."""
        return budget.updates(self.updates_per_epoch, known(self.config.batch_size))

    def count(self, contender: Contender) -> Counts:
        """Counts a contender.

        Raises:
            UserError: There is no such model or field (the nearest is named), or its grid does not
                allow the images' size.
        """
        self.run_config(contender, 0, Path("unused"), None)
        spec = row_of(contender.model).change(**self.network(contender)["model_args"])
        sheet = describe(contender.model, known(self.config.image_size), spec=spec)
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
            **{name: self.identity.to_dict()[name] for name in ("data", "software")},
        }

    def _args(self, contender: Contender) -> dict[str, Any]:
        """A row's own position tables are made for the size at hand, not resized to it."""
        side = known(self.config.image_size)
        return {"img_size": [side, side], **contender.model_args}


def share(recipe: TrainConfig, contenders: Sequence[Contender]) -> SharedRecipe:
    """Looks at the data and fills the recipe's gaps.

    Raises:
        UserError: The data cannot be used, or the recipe starts from weights.
    """
    if recipe.weights or recipe.freeze == "backbone":
        what = f"weights {recipe.weights!r}" if recipe.weights else "freeze backbone"
        raise UserError(f"Got {what}, but a comparison trains all from scratch; leave it out.")
    config = replace(
        recipe, model=contenders[0].model, model_args={}, epochs=None, updates=None, seed=0,
        out=None, resume=None, force=False,
    )  # fmt: skip
    splits = load_data(
        config.data,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        download=config.download,
    )
    device = choose_device(config.device)
    config = replace(derive(config, measure(splits), device), epochs=None)
    # One for all, and the same wherever a comparison goes on: nothing is tried.
    config = replace(config, precision=cast("Any", choose_precision(config.precision, device)))
    check_batch(config, len(splits.train), 1)
    return SharedRecipe(
        config=config,
        identity=Identity.of(splits, config.accum_steps),
        has_own_warm_up=recipe.optim.warmup_epochs is not None,
        num_classes=len(splits.classes),
        updates_per_epoch=len(splits.train) // known(config.batch_size),
        split=_split(splits),
    )


def _split(splits: DataSplits) -> str:
    return "validation" if splits.test is None else "test"
