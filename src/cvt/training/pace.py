"""How long a run takes: a look at its pace before it starts, and a plan that ends in its minutes.

A run that is given minutes decides by its pace how many updates it has. Where the machine turns out
to be slower or quicker it plans anew: the learning rate goes on from where it is, and comes down in
the updates that are left. What was planned is part of the run's state, so that it can be resumed.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, islice

import torch
from timm.scheduler import CosineLRScheduler
from torch.optim import Optimizer

from cvt.data import Batch, DataSplits, eval_transform, train_transform
from cvt.errors import UserError
from cvt.evaluation.answers import validate
from cvt.parts.model import VisionModel
from cvt.runtime import ALONE, World, generators_kept
from cvt.training.config import OptimConfig, TrainConfig
from cvt.training.losses import Teacher
from cvt.training.network import set_train_mode
from cvt.training.run_folder import EpochRow, Pace, Piece, Timetable, best_epoch
from cvt.training.screen import say_about
from cvt.training.step import (
    Learner,
    NonFinite,
    eval_batches,
    make_learner,
    on_device,
    train_batches,
    train_step,
)
from cvt.weights.record import Preprocessing

Clock = Callable[[], float]
"""Tells the seconds since a command began."""


def clock_from_now() -> Clock:
    """Returns a clock that begins here."""
    since = time.monotonic()
    return lambda: time.monotonic() - since


# --- The learning rate as a function of where in the plan an update is.

_MOST_WARM_UP = 10  # one part in so many, of minutes: how many epochs they are is not known before


def make_scheduler(
    optimizer: Optimizer,
    config: OptimConfig,
    length: int,
    updates_per_epoch: int,
    in_minutes: bool = False,
) -> CosineLRScheduler:
    """Returns timm's cosine over the whole run; `step_update(position)` sets the rates.

    The rate climbs linearly from a thousandth of the peak, then joins the cosine that began at
    the first update, as the reference's does. It is a pure function of the position, from 0 to
    `length`, and under layer decay each group has its share of it.

    Source: microsoft/CvT f851e68, YAML LR_SCHEDULER. Deviation: steps per update, not per epoch.

    Args:
        length: Updates that the schedule is made for.
        in_minutes: Whether the length followed from minutes, so that it may be short.
    """
    most = length // _MOST_WARM_UP if in_minutes else length - 1
    return CosineLRScheduler(
        optimizer,
        t_initial=max(length, 2),  # of a cosine of one step, which is its peak, timm warns
        lr_min=config.min_lr,
        warmup_t=min(round(config.warmup_epochs * updates_per_epoch), most),
        warmup_lr_init=config.lr / 1000,
        t_in_epochs=False,
    )


# --- The pace, measured on a throw-away copy of the network with real images.

WARM_UP = 5
MOST_UPDATES = 40
FEWEST = 3
LONGEST_S = 20.0
_WRITTEN_PER_S = 200e6  # bytes of weights and moments; a slow disk's
_LEAST_WRITING_S = 0.1


def measure_pace(
    config: TrainConfig,
    model: VisionModel,
    preprocessing: Preprocessing,
    splits: DataSplits,
    device: torch.device,
    *,
    world: World = ALONE,
    teacher: Teacher | None = None,
    most_s: Callable[[float], float] = lambda update: math.inf,
) -> Pace | None:
    """Makes updates as a run of this config would, loading included, and answers some images.

    The mean over up to 40 updates or 20 seconds, after five that are not counted, or over the
    later half of fewer. The model, which may be on another device, and the generators stay as they
    are.

    Args:
        most_s: How long all updates may take; asked with how long the quickest one has taken so
            far. 0 gives it up, and None is returned.
    """
    with _all_generators_kept(device):
        made = copy.deepcopy(model)
        learner = make_learner(made, config, len(splits.classes), device, world, teacher)
        for group in learner.optimizer.param_groups:
            group["lr"] = 0.0  # so that nothing diverges
        transform = train_transform(preprocessing, config.augment)

        def batches_of(epoch: int) -> Iterable[Batch]:
            return train_batches(config, splits.train, transform, world, epoch)

        set_train_mode(learner.network.model, config.freeze)
        took, starts = _time_updates(learner, config, batches_of, device, most_s)
        if not starts:
            return None
        counted = took[min(WARM_UP, len(took) // 2) :]
        update = sum(counted) / len(counted)
        images = eval_transform(preprocessing)
        start, batch, num_images = _time_answers(
            learner,
            eval_batches(config, splits.val, images, world),
            device,
            world,
            max(sum(took) / 4, update),
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def answering(number: int) -> float:
        batches = -(-number // max(num_images * world.size, 1))
        return start + batch * batches if number else 0.0

    size = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    writing = _LEAST_WRITING_S + 4 * size / _WRITTEN_PER_S  # weights, again, and two moments
    return Pace(
        update=update,
        epoch=sum(starts) / len(starts),
        validation=answering(len(splits.val)) + writing,
        test=answering(len(splits.test) if splits.test is not None else 0),
    )


@contextmanager
def _all_generators_kept(device: torch.device) -> Generator[None]:
    devices = [device] if device.type == "cuda" else []
    with generators_kept(), torch.random.fork_rng(devices=devices):
        yield


def _time_updates(
    learner: Learner,
    config: TrainConfig,
    batches_of: Callable[[int], Iterable[Batch]],
    device: torch.device,
    most_s: Callable[[float], float],
) -> tuple[list[float], list[float]]:
    """Returns how long each update took, and how long each epoch until its first images came."""
    took: list[float] = []
    starts: list[float] = []
    world = learner.step.world
    for epoch in count():
        batches = iter(batches_of(epoch))
        since = time.monotonic()
        is_first = True
        while chunks := list(islice(batches, config.accum_steps)):
            start = time.monotonic() - since if is_first and config.num_workers else 0.0
            _make_update(learner, config, chunks, device)
            now = time.monotonic()
            took.append(world.from_main(now - since - start))
            if is_first:
                starts.append(world.from_main(start))
            is_first, since = False, now
            most = world.from_main(most_s(min(took)))
            if most <= 0:
                starts.clear()
            if sum(took) >= most or _is_enough(took[WARM_UP:]):
                _close(batches)
                return took, starts
    raise AssertionError("count() does not end")


def _is_enough(counted: Sequence[float]) -> bool:
    many = len(counted) >= FEWEST and sum(counted) >= LONGEST_S
    return many or len(counted) >= MOST_UPDATES


def _make_update(
    learner: Learner, config: TrainConfig, chunks: list[Batch], device: torch.device
) -> None:
    with suppress(NonFinite):  # which the run itself will tell
        train_step(
            learner.network.forward,
            on_device(chunks, device, config.channels_last),
            learner.loss_fn,
            learner.optimizer,
            learner.step,
        )
    if learner.network.ema is not None:
        learner.network.ema.update(learner.network.model, step=1)


def _time_answers(
    learner: Learner, batches: Iterable[Batch], device: torch.device, world: World, most: float
) -> tuple[float, float, int]:
    """Returns the seconds until answers begin, those of a batch, and the images in one."""
    ends: list[float] = []
    sizes: list[int] = []

    def some() -> Iterator[Batch]:
        iterator = iter(batches)
        for batch in iterator:
            yield batch
            ends.append(world.from_main(time.monotonic() - since))
            sizes.append(len(batch.labels) + len(batch.bad))
            if ends[-1] > most:
                break
        _close(iterator)

    since = time.monotonic()
    with suppress(UserError):  # none of these images could be read
        validate(learner.network.product, some(), device, learner.step.precision, None, world)
    later = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]
    return max(ends[0] - later, 0.0), later, world.from_main(sizes[0])


def _close(batches: Iterator[Batch]) -> None:
    """Ends a loader's processes now."""
    if isinstance(batches, Generator):
        batches.close()


# --- From the pace to a plan.

MOST_VALIDATING = 0.15
_ENDING_S = 2.0  # curves, card, and Python's own end
_LOOKS = 40  # at the clock, on the way through the plan
_WINDOW = 4  # looks, over which the pace is averaged: less would be noise
_TOLERATED, _NEGLIGIBLE = 0.05, 0.005  # of the time that is left, of all of it


def needed(pace: Pace, updates_per_epoch: int, every: int, done: int, total: int) -> float:
    """Returns the seconds from one update to the end of a run of `total`.

    Args:
        every: Epochs from one validation to the next.
        done: Updates that are made.
    """
    epochs = -(-total // updates_per_epoch) - -(-done // updates_per_epoch)
    between = every * updates_per_epoch
    first, last = max(-(-done // between), 1), (2 * total // between - 1) // 2
    validations = max(last - first + 1, 0) + 1
    return (
        pace.update * (total - done)
        + pace.epoch * epochs
        + pace.validation * validations
        + pace.test
        + _ENDING_S
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run in minutes may not exceed.

    Args:
        seconds: Of the whole command, in all of its sessions.
        most_updates: None where nothing but the time counts.
    """

    seconds: float
    updates_per_epoch: int
    most_updates: int | None

    def needed(self, pace: Pace, every: int, done: int, total: int) -> float:
        """Returns the seconds from one update to the end of a run of `total`."""
        return needed(pace, self.updates_per_epoch, every, done, total)

    def farthest(self, pace: Pace, every: int, done: int, spent: float) -> int:
        """Returns the most updates with which a run still ends in time; `done` if it cannot."""
        left = self.seconds - spent
        low, high = done, done + int(max(left, 0.0) / max(pace.update, 1e-9)) + 1
        high = min(high, self.most_updates or high)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.needed(pace, every, done, middle) <= left
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def plan(self, pace: Pace, spent: float) -> Timetable:
        """Returns the first plan of a run that has taken so many seconds to come here."""
        epoch = pace.epoch + pace.update * self.updates_per_epoch
        share = MOST_VALIDATING / (1 - MOST_VALIDATING)
        every = max(1, math.ceil(pace.validation / (share * max(epoch, 1e-9))))
        total = self.farthest(pace, every, 0, spent)
        if total < 1:
            raise UserError(self._too_short(pace, spent))
        return Timetable(pieces=(Piece(start=0, done=0.0, end=total),), validate_every=every)

    def _too_short(self, pace: Pace, spent: float) -> str:
        least, whole = (
            math.ceil((spent + self.needed(pace, 1, 0, updates)) / 6 * 1.1) / 10
            for updates in (1, self.updates_per_epoch)
        )
        return (
            f"Got minutes {self.seconds / 60:g}, too few for an update ({say_about(pace.update)}), "
            f"a validation ({say_about(pace.validation)}) and what comes before and after them "
            f"({say_about(spent + pace.test + _ENDING_S)}); {least:g} are the least here, "
            f"{whole:g} one epoch."
        )


class Watch:
    """Looks at the clock of a run in minutes, and changes its plan where that leads elsewhere."""

    def __init__(self, limits: Limits, plan: Timetable, pace: Pace) -> None:
        self.limits, self.pace = limits, pace
        self._every = max(1, round(plan.length / _LOOKS))
        self._took: deque[float] = deque(maxlen=max(_WINDOW * self._every, 8))
        self._is_warm = False

    def update(self, seconds: float, start: float = 0.0) -> None:
        """Notes how long an update took, `start` of it an epoch's beginning."""
        if start:
            self.pace = replace(self.pace, epoch=start)
        if self._is_warm:
            self._took.append(seconds - start)
            self.pace = self._now()
        self._is_warm = True

    def validation(self, seconds: float) -> None:
        """Notes how long a validation took, and what is written after it: half of the estimate."""
        mean = (self.pace.validation + seconds) / 2
        test = self.pace.test * mean / max(self.pace.validation, 1e-9)
        self.pace = replace(self.pace, validation=mean, test=test)

    def is_due(self, done: int) -> bool:
        """Whether it is time for a look, after so many updates of the run."""
        return done % self._every == 0 and len(self._took) > 0

    def replan(self, plan: Timetable, done: int, spent: float) -> Timetable | None:
        """Returns another plan, if this one would end at another time than it should."""
        every, left = plan.validate_every, self.limits.seconds - spent
        total = self.limits.farthest(self.pace, every, done, spent)
        planned, better = (
            self.limits.needed(self.pace, every, done, each) for each in (plan.total, total)
        )
        tolerated = max(_TOLERATED * left, _NEGLIGIBLE * self.limits.seconds)
        return plan.changed(done, total) if abs(better - planned) > tolerated else None

    def _now(self) -> Pace:
        """A machine that is slower in updates is slower in all else, as far as one knows."""
        update = sum(self._took) / len(self._took)
        factor = update / max(self.pace.update, 1e-9)
        return replace(
            self.pace,
            update=update,
            validation=self.pace.validation * factor,
            test=self.pace.test * factor,
        )


# --- What is said of it: how long it will take, and that going on is not worth it.


def say_length(
    pace: Pace, updates_per_epoch: int, total: int, limits: Limits | None, every: int
) -> str:
    """Returns a sentence about how long a run takes on this machine."""
    epoch = pace.epoch + pace.update * updates_per_epoch + pace.validation / every
    epochs = f"{total / updates_per_epoch:.3g} epochs"
    each = f"{say_about(epoch)} an epoch"
    if limits is None:
        seconds = needed(pace, updates_per_epoch, 1, 0, total)
        return f"It will take about {say_about(seconds)} here: {each}."
    rest = (
        f", validated every {every} epochs, as that takes {say_about(pace.validation)}"
        if every > 1
        else ""
    )
    if total == limits.most_updates:
        seconds = limits.needed(pace, every, 0, total)
        return (
            f"It will take about {say_about(seconds)} here, of {limits.seconds / 60:g} min at the "
            f"most: {each}{rest}."
        )
    return f"It will end after {limits.seconds / 60:g} min: {epochs} here, {each}{rest}."


_FEWEST_EPOCHS, _SHARE_OF_RUN = 5, 5
_LOSS_TOO = 0.99


def has_stopped_moving(history: Sequence[EpochRow], epochs: int, num_images: int) -> bool:
    """Whether validation has not got better for a fifth of the run, and this is the first time.

    Better is a top-1 that is higher by more than its standard error, or a loss lower by 1 %.
    """
    return _is_still(history, epochs, num_images) and not any(
        _is_still(history[:length], epochs, num_images) for length in range(1, len(history))
    )


def _is_still(history: Sequence[EpochRow], epochs: int, num_images: int) -> bool:
    since = history[-1].epoch - max(_FEWEST_EPOCHS, epochs / _SHARE_OF_RUN)
    before = [row for row in history if row.epoch <= since]
    if not before:
        return False
    old, new = best_epoch(before), best_epoch(history)
    least = min(row.val_loss for row in before)
    share = (old.val_top1 * num_images / 100 + 1) / (num_images + 2)
    error = 100 * math.sqrt(share * (1 - share) / num_images)
    return (
        new.val_top1 <= old.val_top1 + error
        and min(row.val_loss for row in history) >= _LOSS_TOO * least
    )
