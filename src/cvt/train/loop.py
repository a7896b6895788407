"""The training loop, read from top to bottom."""

import time

from cvt.data import Batch
from cvt.errors import UserError
from cvt.train.config import TrainConfig, save_config
from cvt.train.interrupt import Interrupted, StopRequest, stop_requests
from cvt.train.job import Job
from cvt.train.keep import draw, keep_epoch, keep_state, load_best
from cvt.train.report import TrainResult, report
from cvt.train.run_folder import CONFIG_FILE
from cvt.train.screen import Screen
from cvt.train.seeding import seed_position
from cvt.train.setup import prepare
from cvt.train.step import NonFinite, StepResult, train_step
from cvt.train.validate import Logits, validate


def train(config: TrainConfig, progress: bool = True) -> TrainResult:
    """Trains a model and leaves a run folder with weights, metrics and curves.

    The weights of the epoch with the best validation top-1 are kept beside the last ones and, if
    the data has a test split, measured on it once, at the end. The generators of Python, numpy
    and torch are seeded anew before every update.

    Args:
        progress: Print what happens.

    Raises:
        UserError: Config or data cannot be used.
        NonFinite: The loss or the gradient is not finite; the last good state is in the folder.
        Interrupted: Ctrl-C; the state was saved, and `resume` goes on exactly from there.
    """
    start = time.monotonic()
    job = prepare(config)
    save_config(job.run / CONFIG_FILE, job.config)
    with Screen(job.total_updates, job.done_updates, progress) as screen, stop_requests() as stop:
        screen.describe(job.config, job.describe())
        while job.progress.epoch < job.epochs:
            _train_epoch(job, screen, stop)
            answers = _validate(job, screen, stop)
            row = job.progress.finish_epoch(answers.loss(), answers.top_k(1), job.lr)
            keep_epoch(job, row)
            screen.epoch(row, job.epochs, is_best=job.progress.best is row)
        answers = _test(job, screen, stop)
        result = _result(job, answers, time.monotonic() - start)
        screen.say(report(result))
    return result


def _train_epoch(job: Job, screen: Screen, stop: StopRequest) -> None:
    """Makes the updates of the epoch in hand that are not made yet."""
    progress = job.progress
    since = time.monotonic()
    for batch in job.train_loader():
        _name_bad(job, batch.bad, screen)
        loss = _update(job, batch)
        progress.batch += 1
        now = time.monotonic()
        progress.count(loss, len(batch.labels), now - since)
        since = now
        screen.update(f"{progress.epoch + 1}/{job.epochs}", loss, job.lr, progress.images_per_s)
        if stop.is_set:
            _leave(job, save=True)


def _update(job: Job, batch: Batch) -> float:
    """Makes one update and returns its loss; of fewer than two pictures none can be made."""
    if len(batch.labels) < 2:  # BatchNorm needs two
        return 0.0
    seed_position(job.config.seed, job.progress.epoch, job.progress.batch)
    job.set_lr()
    try:
        result: StepResult = train_step(
            job.model,
            batch.images.to(job.device, non_blocking=True),
            batch.labels.to(job.device, non_blocking=True),
            job.loss_fn,
            job.optimizer,
            mixer=job.mixer,
            clip_grad=job.config.optim.clip_grad or 0.0,
            precision=job.config.precision,
        )
    except NonFinite as error:
        raise _explained(job, error) from None
    return result.loss


def _validate(job: Job, screen: Screen, stop: StopRequest) -> Logits:
    """Measures the epoch in hand, whose updates are all made."""

    def check(num_images: int) -> None:
        if stop.is_set:
            _leave(job, save=True)

    loader = job.eval_loader(job.splits.val)
    answers = validate(job.model, loader, job.device, job.config.precision, check)
    _name_bad(job, answers.bad, screen)
    return answers


def _test(job: Job, screen: Screen, stop: StopRequest) -> Logits | None:
    """Measures the best weights on the test split, if there is one."""

    def check(num_images: int) -> None:
        if stop.is_set:
            _leave(job, save=False)  # it would store the best weights as the last ones

    load_best(job)
    if job.splits.test is None:
        return None
    loader = job.eval_loader(job.splits.test)
    answers = validate(job.model, loader, job.device, job.config.precision, check)
    _name_bad(job, answers.bad, screen)
    return answers


def _name_bad(job: Job, sentences: tuple[str, ...], screen: Screen) -> None:
    for sentence in job.progress.note_bad(sentences):
        screen.say(f"skipped: {sentence}")


def _leave(job: Job, save: bool) -> None:
    if save:
        keep_state(job)
        draw(job)
    progress = job.progress
    where = f"in epoch {progress.epoch + 1} of {job.epochs} after {progress.batch} updates of it"
    if progress.epoch == job.epochs:
        where = "after the last epoch"
    raise Interrupted(job.run, where)


def _explained(job: Job, error: NonFinite) -> UserError:
    kept = "the state of the last epoch is kept in" if job.progress.history else "see"
    return NonFinite(
        f"Training stopped at update {job.done_updates + 1} (epoch {job.progress.epoch + 1}, "
        f"learning rate {job.lr:.3g}): {error}; {kept} {job.run}; "
        "start again with a lower --optim.lr or a lower --optim.clip-grad."
    )


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
        seconds=seconds,
        bad=tuple(job.progress.bad),
    )
