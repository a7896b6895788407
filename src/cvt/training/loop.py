"""The training loop, read from top to bottom."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cvt.data import Batch, ImageSet, dead_workers_explained
from cvt.errors import UserError
from cvt.evaluation.answers import Logits, validate
from cvt.plain import to_plain
from cvt.runtime import (
    Interrupted,
    StopRequest,
    World,
    is_lost_peer,
    join_world,
    peak_memory_mb,
    seed_position,
    stop_requests,
)
from cvt.training.config import Layer, TrainConfig, save_config
from cvt.training.defaults import read_layers, said
from cvt.training.job import (
    Job,
    draw,
    explained,
    keep_again,
    keep_epoch,
    keep_result,
    keep_state,
    load_best,
)
from cvt.training.network import set_train_mode
from cvt.training.report import TrainResult, report
from cvt.training.run_folder import CONFIG_FILE, Events, held
from cvt.training.screen import Screen
from cvt.training.setup import prepare
from cvt.training.step import Chunk, NonFinite, StepResult, train_step


def train(
    data: str | Path | TrainConfig | None = None,
    *,
    recipe: str | Path | Sequence[str | Path] = (),
    progress: bool = True,
    **settings: Any,
) -> TrainResult:
    """Trains a classifier and leaves a run folder with weights, checkpoints, metrics and curves.

    Started by torchrun, all processes train together. The weights of the epoch with the best
    validation top-1 are kept beside the last ones and, if the data has a test split, measured on
    it once, at the end. The generators of Python, numpy and torch are seeded anew at every update.

    Args:
        data: digits (the default), a folder of images, parquet files, torch/cifar10, hfds/...;
            or a whole `TrainConfig`.
        recipe: A recipe's name or a YAML file, or several: later ones override earlier.
        progress: Print what happens.
        settings: Fields of `TrainConfig`, which override recipes: `epochs=3`, groups as dicts,
            `optim={"lr": 1e-3}`. What nobody says follows from data and device.

    Raises:
        NonFinite: The loss or the gradient is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the state was saved, and `resume` goes on exactly from there.
    """
    asked = _asked(data, recipe, settings)
    with dead_workers_explained(), join_world(asked.get("device", "auto")) as world:
        try:
            return _run(asked, world, progress and world.is_main)
        except RuntimeError as error:
            if world.size > 1 and is_lost_peer(error):
                raise UserError(
                    f"Process {world.rank} of {world.size} lost touch with another one, which has "
                    "ended or no longer answers; go on with the same processes by --resume."
                ) from error
            raise


def _asked(
    data: str | Path | TrainConfig | None,
    recipe: str | Path | Sequence[str | Path],
    settings: dict[str, Any],
) -> Layer:
    """All that was said as one layer."""
    plain = to_plain(settings)
    if isinstance(data, TrainConfig):
        plain = {**data.to_dict(), **plain}
    elif data is not None:
        plain = {"data": str(data), **plain}
    recipes = [recipe] if isinstance(recipe, str | Path) else recipe
    return read_layers(map(str, recipes), said(plain, "the settings"))


@dataclass(kw_only=True)
class _Session:
    """What the loop talks to while it works."""

    job: Job
    screen: Screen
    events: Events
    stop: StopRequest

    def show(self, result: StepResult) -> None:
        """Shows an update that has been counted."""
        job, progress = self.job, self.job.progress
        self.screen.update(
            f"{progress.epoch + 1}/{job.epochs}",
            result.loss,
            job.lr,
            progress.images_per_s,
            progress.data_wait,
            peak_memory_mb(job.device),
        )
        self.events.update(
            job.done_updates, result.loss, job.lr, result.grad_norm, progress.images_per_s
        )

    def agree(self, bad: Sequence[str] = ()) -> tuple[bool, bool]:
        """Whether any process is to stop, and whether a checkpoint is due; the same in all.

        Pictures that could not be read, in whichever process, are made known to all of them.
        """
        job = self.job
        waited = time.monotonic() - job.saved_at
        due = job.world.is_main and waited > 60 * job.config.checkpoint_minutes
        mine = torch.tensor([self.stop.is_set, due, len(bad)], dtype=torch.float32)
        stop, save, skipped = job.world.sum(mine).tolist()
        if skipped:
            self.name_bad([sentence for share in job.world.gather(bad) for sentence in share])
        return bool(stop), bool(save)

    def name_bad(self, sentences: Iterable[str]) -> None:
        """Says which pictures could not be read, each of them once."""
        for sentence in self.job.progress.note_bad(tuple(sentences)):
            self.screen.say(f"skipped: {sentence}")


def _run(asked: Layer, world: World, shown: bool) -> TrainResult:
    start = time.monotonic()
    with ExitStack() as stack:
        job = prepare(
            asked, world, lambda run: world.on_main(lambda: stack.enter_context(held(run)))
        )
        done, progress = job.done_updates, job.progress
        # An epoch's figures stand at its last update: one that is yet to be measured gets new ones.
        is_unmeasured = progress.batch == job.updates_of_epoch > 0
        # From here on the run can be resumed, if only from its beginning.
        world.on_main(lambda: save_config(job.run / CONFIG_FILE, job.config))
        screen = stack.enter_context(Screen(job.total_updates, done, shown))
        first = done + (not is_unmeasured)
        events = stack.enter_context(Events(job.run, first, screen.say, enabled=world.is_main))
        stop = stack.enter_context(stop_requests())
        session = _Session(job=job, screen=screen, events=events, stop=stop)
        answers = _work(session)
        result = _result(job, answers, time.monotonic() - start)
        keep_result(job, result)
        screen.report(report(result))
    return result


def _work(session: _Session) -> Logits | None:
    """Makes the epochs that are not made yet; returns the best weights' answers to the test."""
    job, screen = session.job, session.screen
    screen.describe(job.config, job.describe(), job.world.size)
    for note in (*job.splits.notes, *job.notes):
        screen.say(note)
    session.name_bad(job.splits.unreadable)
    if job.done_updates:
        keep_again(job)
    else:
        keep_state(job)
    while job.done_updates < job.total_updates or job.progress.batch:
        _train_epoch(session)
        answers = _measure(session, job.splits.val, save=True)
        row = job.progress.finish_epoch(
            answers.loss(), answers.top_k(1), job.lr, peak_memory_mb(job.device)
        )
        # First: what the state does not have behind it is taken back.
        session.events.epoch(job.done_updates, row)
        keep_epoch(job, row)
        screen.epoch(row, job.epochs, is_best=job.progress.best is row)
    load_best(job)
    # Interrupted here, nothing is saved: it would be the best weights in place of the last.
    return _measure(session, job.splits.test, save=False) if job.splits.test else None


def _train_epoch(session: _Session) -> None:
    """Makes the updates of the epoch in hand that are not made yet."""
    job, progress = session.job, session.job.progress
    if progress.batch == job.updates_of_epoch:
        return
    set_train_mode(job.network.model, job.config.freeze)
    batches = iter(job.train_loader())
    since = time.monotonic()
    while progress.batch < job.updates_of_epoch:
        chunks = list(islice(batches, job.config.accum_steps))
        waited = time.monotonic() - since
        result = make_update(job, chunks)
        progress.batch += 1
        now = time.monotonic()
        progress.count(result.loss, result.num_images, now - since, waited)
        since = now
        session.show(result)
        must_stop, must_save = session.agree([each for chunk in chunks for each in chunk.bad])
        if must_stop:
            _leave(job, save=True)
        if must_save:
            keep_state(job)


def make_update(job: Job, chunks: list[Batch]) -> StepResult:
    """Makes one update of this process's chunks of a batch; does not count it.

    Raises:
        NonFinite: The loss or the gradient is not finite.
    """
    progress, config = job.progress, job.config
    job.set_lr(job.done_updates)
    try:
        result = train_step(
            job.network.forward,
            _on_device(job, chunks),
            job.loss_fn,
            job.optimizer,
            job.step,
            lambda chunk: seed_position(config.seed, progress.epoch, progress.batch, chunk),
        )
    except NonFinite as error:
        raise explained(job, error) from None
    if job.network.ema is not None:
        job.network.ema.update(job.network.model, step=job.done_updates + 1)
    return result


def _on_device(job: Job, chunks: Iterable[Batch]) -> Iterator[Chunk]:
    layout = torch.channels_last if job.config.channels_last else torch.contiguous_format
    for chunk in chunks:
        images = chunk.images.to(job.device, non_blocking=True, memory_format=layout)
        yield images, chunk.labels.to(job.device, non_blocking=True)


def _measure(session: _Session, images: ImageSet, save: bool) -> Logits:
    """Measures a split; asked to stop meanwhile, leaves with or without saving the state."""
    job = session.job

    def check(num_images: int) -> None:
        if session.agree()[0]:
            _leave(job, save)

    answers = validate(
        job.network.product,
        job.eval_loader(images),
        job.device,
        job.config.precision,
        check,
        job.world,
    )
    session.name_bad(answers.bad)
    return answers


def _leave(job: Job, save: bool) -> None:
    if save:
        keep_state(job)
        draw(job)
    progress = job.progress
    where = f"in epoch {progress.epoch + 1} of {job.epochs} after {progress.batch} updates of it"
    if progress.epoch == job.epochs:
        where = "after the last epoch"
    raise Interrupted(job.run, where, is_told_elsewhere=not job.world.is_main)


def _result(job: Job, answers: Logits | None, seconds: float) -> TrainResult:
    best = job.progress.best
    assert best is not None
    return TrainResult(
        run=job.run,
        data=job.config.data,
        best_epoch=best.epoch,
        best_top1=best.val_top1,
        best_loss=best.val_loss,
        test_top1=answers.top_k(1) if answers else None,
        test_loss=answers.loss() if answers else None,
        test_top5=answers.top_k(5) if answers and answers.logits.shape[1] > 5 else None,
        seconds=seconds,
        bad=tuple(job.progress.bad),
    )
