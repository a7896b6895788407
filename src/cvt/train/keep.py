"""What a run writes into its folder, in an order that an interruption anywhere leaves usable."""

import time
from dataclasses import replace
from typing import cast

from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from cvt.errors import UserError
from cvt.figures import if_possible
from cvt.files import remove_left_behind
from cvt.parts.contract import num_params
from cvt.train.card import CardFacts, write_card
from cvt.train.checkpoints import save_state
from cvt.train.curves import save_curves
from cvt.train.job import Job
from cvt.train.machine import hardware, software
from cvt.train.progress import EpochRow
from cvt.train.report import TrainResult, save_result
from cvt.train.run_folder import BEST_WEIGHTS, CURVES_FILE, LAST_WEIGHTS, write_metrics
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint

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
    facts = {
        "config": job.config.to_dict(),
        "identity": job.identity.to_dict(),
        "record": job.record.to_dict(),
        "progress": job.progress.to_dict(),
    }
    keep = job.config.keep_checkpoints
    save_state(job.run, facts, job.tensors, keep=keep, world=job.world)
    _save_weights(job, LAST_WEIGHTS, history[-1] if history else None)
    job.saved_at = time.monotonic()


def keep_result(job: Job, result: TrainResult) -> None:
    """Writes a finished run's card and, last, the file by which it is known to be finished."""
    splits, config = job.splits, job.config
    facts = CardFacts(
        num_params=num_params(job.network.model),
        num_train=len(splits.train),
        num_val=len(splits.val),
        num_test=len(splits.test) if splits.test else 0,
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
