"""A run in hand: all that its loop works with."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import cast

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.optim import Optimizer

from cvt.data import Batch, DataSplits, ImageSet, batch_names, make_eval_loader, make_loader
from cvt.data.order import Share
from cvt.data.transforms import Transform
from cvt.errors import UserError
from cvt.figures import if_possible
from cvt.files import atomic_write, remove_left_behind
from cvt.parts.model import num_params
from cvt.plain import to_plain
from cvt.runtime import World, hardware, software
from cvt.training.card import CardFacts, write_card
from cvt.training.checkpoints import Identity, RunFacts, Tensors, save_state
from cvt.training.config import TrainConfig
from cvt.training.network import Network
from cvt.training.report import TrainResult, save_curves, save_result
from cvt.training.run_folder import (
    BEST_WEIGHTS,
    CURVES_FILE,
    LAST_WEIGHTS,
    EpochRow,
    Progress,
    write_metrics,
)
from cvt.training.step import NonFinite, StepOptions, make_scheduler
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint
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
        return self.config.batch_size

    @property
    def updates_per_epoch(self) -> int:
        """Full batches that the training pictures make; the rest sits an epoch out."""
        return len(self.splits.train) // self.batch_size

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        return self.config.updates or self.config.epochs * self.updates_per_epoch

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
            num_workers=self.config.num_workers,
            drop_last=True,
            repeats=self.config.augment.repeats,
            share=Share(self.world.rank, self.world.size, self.config.accum_steps),
        )

    def eval_loader(self, images: ImageSet) -> Iterable[Batch]:
        """Returns this process's share of a split, in order, without augmentation."""
        return make_eval_loader(
            images,
            self.plain,
            batch_size=max(self.batch_size // (self.world.size * self.config.accum_steps), 1),
            num_workers=self.config.num_workers,
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
        teacher, distill = self.step.teacher, self.config.distill
        if teacher is None or distill is None:
            return ""
        own = self.record.spec.distilled
        where = "a classifier of its own" if own else "the only classifier"
        return (
            f"Taught by {teacher.name} ({teacher.num_params:,} parameters): {distill.kind} "
            f"distillation into {where}. "
        )


# --- What a run writes into its folder, in an order that an interruption anywhere leaves usable.

_DRAW_EVERY_S = 60.0  # a picture takes half a second, which short epochs would notice


def keep_epoch(job: Job, row: EpochRow) -> None:
    """Writes a finished epoch: weights if they are the best, state, metrics, at times curves.

    The best weights come first: interrupted after them, the epoch is repeated to the same result.
    """
    if job.progress.best is row:
        _save_weights(job, BEST_WEIGHTS, row)
    keep_state(job)
    job.world.on_main(lambda: write_metrics(job.run, job.progress.history))
    if time.monotonic() - job.drawn_at > _DRAW_EVERY_S or job.progress.epoch == job.epochs:
        draw(job)


def keep_again(job: Job) -> None:
    """Writes anew what a session that was killed may have left behind the state it saved."""
    history = job.progress.history
    job.world.on_main(lambda: remove_left_behind(job.run))
    _save_weights(job, LAST_WEIGHTS, history[-1] if history else None)
    job.world.on_main(lambda: write_metrics(job.run, history))
    if job.progress.epoch == job.epochs:
        draw(job)


def draw(job: Job) -> None:
    """Draws the curves of the finished epochs, if there are any."""
    title = f"{job.record.model} on {job.splits.name}"
    history = job.progress.history
    if history and job.world.is_main:
        with if_possible():
            save_curves(job.run / CURVES_FILE, history, title)
    job.drawn_at = time.monotonic()


def keep_state(job: Job) -> None:
    """Writes the weights as they are, and a checkpoint that goes on from them."""
    history = job.progress.history
    facts = RunFacts(
        config=job.config.to_dict(),
        identity=job.identity,
        record=job.record.to_dict(),
        progress=job.progress,
    )
    keep = job.config.keep_checkpoints
    save_state(job.run, to_plain(facts), job.tensors, keep=keep, world=job.world)
    _save_weights(job, LAST_WEIGHTS, history[-1] if history else None)
    job.saved_at = time.monotonic()


def keep_result(job: Job, result: TrainResult) -> None:
    """Writes a finished run's card and, last, the file by which it is known to be finished."""
    splits, config = job.splits, job.config
    facts = CardFacts(
        num_params=num_params(job.network.model),
        num_images={name: count for name, (count, _) in job.identity.data.items()},
        val_was_cut=splits.val_was_cut,
        hardware=hardware(job.device, job.world.size),
        processes=job.world.size,
        software=software(),
    )
    history = job.progress.history
    job.world.on_main(lambda: write_card(config, job.record, result, history, facts))
    job.world.on_main(lambda: save_result(job.run, result))


def load_best(job: Job) -> None:
    """Puts the best epoch's weights into the model."""
    path = job.run / BEST_WEIGHTS
    state_dict, _ = load_checkpoint(path)
    options = StateDictOptions(full_state_dict=True)
    try:
        set_model_state_dict(job.network.product, dict(state_dict), options=options)
    except (RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"The best weights are not this run's ({str(error).partition(':')[0]}): {path} was "
            "changed; train again."
        ) from error


def _save_weights(job: Job, name: str, row: EpochRow | None) -> None:
    """Writes the model's weights; their average, where one is kept."""
    metrics = {"epoch": row.epoch, "top1": row.val_top1, "loss": row.val_loss} if row else {}
    record = replace(job.record, metrics=metrics)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state_dict = cast(
        "dict[str, Tensor]", get_model_state_dict(job.network.product, options=options)
    )
    job.world.on_main(lambda: save_checkpoint(job.run / name, state_dict, record))


# --- What is said, and kept, when a loss or a gradient is not a number any more.

REPORT_FILE = "nonfinite.json"


def explained(job: Job, error: NonFinite) -> NonFinite:
    """Returns the error with where it happened, having written the batch's pictures to a file."""
    update, names = job.done_updates + 1, names_of_batch(job)
    path = job.run / REPORT_FILE
    try:
        job.world.on_main(lambda: _write(job, error, update, names))
        listed = f"are named in {path}"
    except UserError as failure:
        listed = f"could not be listed ({str(failure).rstrip('.')})"
    explanation = NonFinite(
        f"Training stopped at update {update} (epoch {job.progress.epoch + 1}, learning rate "
        f"{job.lr:.3g}): {error}; its {len(names)} images ({names[0]}, ...) {listed}, "
        f"and the last good checkpoint is kept in {quote(str(job.run))}; look at them, or start "
        "again with a lower --optim.lr or a lower --optim.clip-grad.",
        loss=error.loss,
        grad_norm=error.grad_norm,
    )
    explanation.is_told_elsewhere = not job.world.is_main
    return explanation


def names_of_batch(job: Job) -> list[str]:
    """Returns the names of the pictures of the batch in hand, those of all processes."""
    return batch_names(
        job.splits.train,
        batch_size=job.batch_size,
        seed=job.config.seed,
        epoch=job.progress.epoch,
        repeats=job.config.augment.repeats,
        batch=job.progress.batch,
    )


def _write(job: Job, error: NonFinite, update: int, names: list[str]) -> None:
    with atomic_write(job.run / REPORT_FILE, "w") as file:
        facts = {
            "update": update,
            "epoch": job.progress.epoch + 1,
            "lr": job.lr,
            "loss": str(error.loss),
            "grad_norm": str(error.grad_norm),
            "images": names,
        }
        json.dump(facts, file, indent=1)
