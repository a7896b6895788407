"""A run in hand: all that its loop works with."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from cvt.data import Batch, DataSplits, ImageSet, make_eval_loader, make_loader
from cvt.data.order import Share
from cvt.data.transforms import Transform
from cvt.parts.contract import num_params
from cvt.train.checkpoints import Tensors
from cvt.train.config import TrainConfig, known
from cvt.train.identity import Identity
from cvt.train.network import Network
from cvt.train.optim import make_scheduler
from cvt.train.progress import Progress
from cvt.train.step import StepOptions
from cvt.train.world import World
from cvt.weights.record import Record


@dataclass(kw_only=True)
class Job:
    """A run, ready for its next update: `config` has no gaps, `progress` says where it is.

    `notes` are sentences that the user should read before it goes on.
    """

    config: TrainConfig
    run: Path
    world: World
    splits: DataSplits
    identity: Identity
    device: torch.device
    network: Network
    record: Record
    optimizer: Optimizer
    loss_fn: nn.Module
    step: StepOptions
    augmented: Transform
    plain: Transform
    progress: Progress
    scheduler: Scheduler = field(init=False)
    saved_at: float = field(default_factory=time.monotonic)
    drawn_at: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = make_scheduler(
            self.optimizer, self.config.optim, self.total_updates, self.updates_per_epoch
        )

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; the last one may be cut short by `config.updates`."""
        return -(-self.total_updates // self.updates_per_epoch)

    @property
    def batch_size(self) -> int:
        """Pictures per update, over all processes."""
        return known(self.config.batch_size)

    @property
    def updates_per_epoch(self) -> int:
        """Full batches that the training pictures make; the rest sits an epoch out."""
        return len(self.splits.train) // self.batch_size

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        return self.config.updates or known(self.config.epochs) * self.updates_per_epoch

    @property
    def updates_of_epoch(self) -> int:
        """Updates of the epoch in hand."""
        left = self.total_updates - self.progress.epoch * self.updates_per_epoch
        return min(left, self.updates_per_epoch)

    @property
    def done_updates(self) -> int:
        """Updates made so far, in this session and before."""
        done = self.progress.epoch * self.updates_per_epoch + self.progress.batch
        return min(done, self.total_updates)

    @property
    def lr(self) -> float:
        """Learning rate of the last update; with layer decay, that of the classifier."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def tensors(self) -> Tensors:
        """What a checkpoint holds of tensors."""
        ema = self.network.ema
        return Tensors(
            model=self.network.model,
            optimizer=self.optimizer,
            ema=None if ema is None else ema.module,
            scaler=self.step.scaler,
        )

    def set_lr(self, update: int) -> None:
        """Sets the learning rate of an update, counted from 0, a function of its number."""
        self.scheduler.step_update(max(update, 0))

    def train_loader(self) -> Iterable[Batch]:
        """Returns this process's chunks of the batches of the epoch in hand not done yet."""
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
            repeats=known(self.config.augment.repeats),
            share=Share(self.world.rank, self.world.size, self.config.accum_steps),
        )

    def eval_loader(self, images: ImageSet) -> Iterable[Batch]:
        """Returns this process's share of a split, in order, without augmentation."""
        return make_eval_loader(
            images,
            self.plain,
            batch_size=max(self.batch_size // (self.world.size * self.config.accum_steps), 1),
            num_workers=known(self.config.num_workers),
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def describe(self) -> str:
        """Returns sentences about data, model, device, processes and teacher."""
        splits, world = self.splits, self.world
        sizes = f"{len(splits.train):,} training and {len(splits.val):,} validation images"
        if splits.test is not None:
            sizes += f", {len(splits.test):,} for the final test"
        cut = " (validation cut from training)" if splits.val_was_cut else ""
        processes = f"{world.size} processes ({self.config.parallel}), " if world.size > 1 else ""
        return (
            f"{splits.name}: {sizes}{cut}, {len(splits.classes)} classes. "
            f"{self.record.model}: {num_params(self.network.model):,} parameters, "
            f"{processes}on {self.device} in {self.config.precision}. {self._taught()}"
            f"Run folder: {self.run}"
        )

    def _taught(self) -> str:
        teacher, kind = self.step.teacher, self.config.distill.kind
        if teacher is None:
            return ""
        own = getattr(self.record.spec, "distilled", False)
        where = "a classifier of its own" if own else "the only classifier"
        return (
            f"Taught by {teacher.name} ({teacher.num_params:,} parameters): {kind} distillation "
            f"into {where}. "
        )
