"""A run in hand: all that its loop works with."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from cvt.data import Batch, DataSplits, ImageSet, make_loader
from cvt.data.transforms import Transform
from cvt.train.config import TrainConfig, known
from cvt.train.progress import Progress
from cvt.train.step import Mixer
from cvt.weights.record import Record


@dataclass(kw_only=True)
class Job:
    """A run, ready for its next update: `config` has no gaps, `progress` says where it is."""

    config: TrainConfig
    run: Path
    splits: DataSplits
    device: torch.device
    model: nn.Module
    record: Record
    optimizer: Optimizer
    scheduler: CosineLRScheduler
    loss_fn: nn.Module
    mixer: Mixer | None
    augmented: Transform
    plain: Transform
    progress: Progress
    drawn_at: float = field(default_factory=time.monotonic)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return known(self.config.epochs)

    @property
    def batch_size(self) -> int:
        """Pictures per update."""
        return known(self.config.batch_size)

    @property
    def updates_per_epoch(self) -> int:
        """Full batches that the training pictures make; the rest sits an epoch out."""
        return len(self.splits.train) // self.batch_size

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.updates_per_epoch

    @property
    def done_updates(self) -> int:
        """Updates made so far, in this session and before."""
        return self.progress.epoch * self.updates_per_epoch + self.progress.batch

    @property
    def lr(self) -> float:
        """Learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    def set_lr(self) -> None:
        """Sets the learning rate of the update that comes next, a function of its number."""
        self.scheduler.step_update(self.done_updates)

    def train_loader(self) -> Iterable[Batch]:
        """Returns the batches of the epoch in hand that are not done yet."""
        return make_loader(
            self.splits.train,
            self.augmented,
            batch_size=self.batch_size,
            shuffle=True,
            seed=self.config.seed,
            epoch=self.progress.epoch,
            start_batch=self.progress.batch,
            num_workers=known(self.config.num_workers),
            drop_last=True,
        )

    def eval_loader(self, images: ImageSet) -> Iterable[Batch]:
        """Returns all pictures of a split, in order, without augmentation."""
        return make_loader(
            images,
            self.plain,
            batch_size=self.batch_size,
            shuffle=False,
            num_workers=known(self.config.num_workers),
        )

    def describe(self) -> str:
        """Returns a sentence about data, model and device."""
        splits = self.splits
        num_params = sum(each.numel() for each in self.model.parameters())
        sizes = f"{len(splits.train):,} training and {len(splits.val):,} validation images"
        if splits.test is not None:
            sizes += f", {len(splits.test):,} for the final test"
        cut = " (validation cut from training)" if splits.val_was_cut else ""
        return (
            f"{splits.name}: {sizes}{cut}, {len(splits.classes)} classes. "
            f"{self.record.model}: {num_params:,} parameters, on {self.device} in "
            f"{self.config.precision}. Run folder: {self.run}"
        )
