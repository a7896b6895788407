"""Batches whose content depends on (seed, epoch) alone: a run can stop and go on anywhere."""

import re
import signal
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cvt.data.image import BadImage
from cvt.data.order import (
    WHOLE,
    Share,
    chunks_of,
    epoch_order,
    epoch_rows,
    set_batches,
    share_of_rank,
    stream_batches,
    stream_share,
)
from cvt.data.sets import ImageSet
from cvt.data.streams import Row, StreamSet, decoded, read_ahead
from cvt.data.transforms import Transform
from cvt.errors import UserError
from cvt.runtime import generators_kept, seed_all

# --- What a loader yields, and how it comes from single pictures.


@dataclass(frozen=True)
class Batch:
    """The good pictures of a batch, B of them, and a sentence about each bad one.

    Args:
        images: float32, shape (B, C, H, W); B is 0 if every picture is bad.
        labels: int64, shape (B,).
        indices: Position of each picture in the image set, int64, shape (B,).
        bad: One sentence for each picture that was skipped.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    bad: tuple[str, ...] = ()

    def pin_memory(self) -> "Batch":
        """Returns a copy in page-locked memory; the DataLoader calls this."""
        pinned = (each.pin_memory() for each in (self.images, self.labels, self.indices))
        return Batch(*pinned, self.bad)


class Sample(NamedTuple):
    """A picture on its way into a batch; `image` is a sentence if it is bad."""

    index: int
    label: int
    image: Tensor | str


def batch_of(samples: Sequence[Sample], transform: Transform) -> Batch:
    """Puts samples together; `transform` tells the shape of a batch of no pictures."""
    good = [sample for sample in samples if isinstance(sample.image, Tensor)]
    # In a loading process, torch's own function writes straight into memory that is shared.
    images = default_collate([sample.image for sample in good]) if good else _no_images(transform)
    return Batch(
        images,
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        torch.tensor([sample.index for sample in good], dtype=torch.int64),
        tuple(sample.image for sample in samples if isinstance(sample.image, str)),
    )


def _no_images(transform: Transform) -> Tensor:
    """Returns shape (0, C, H, W); only the transform knows what C, H and W are."""
    with generators_kept():
        return transform(Image.new("RGB", (8, 8)))[None][:0]


# --- From the members of a batch to its pictures, each with randomness of its own.


class Samples(ABC):
    """What turns the members of a batch into pictures, and pictures into a batch.

    Args:
        transform: From a picture to a tensor.
        seed: What a random transform does depends on this, the epoch and the picture's number.
        epoch: Counted from 0.
    """

    def __init__(self, transform: Transform, seed: int, epoch: int) -> None:
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    @abstractmethod
    def load(self, member: Any) -> Sample:
        """Decodes and transforms one picture; a bad one becomes a sentence."""

    def seed_for(self, number: int) -> None:
        """Makes the transform that comes next depend on nothing but this number."""
        seed_all(self.seed, self.epoch, number)

    def __getitems__(self, members: Sequence[Any]) -> list[Sample]:
        with generators_kept():
            return [self.load(member) for member in members]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Puts pictures together."""
        return batch_of(samples, self.transform)


class NumberedSamples(Samples):
    """Pictures of a set; number `n` is picture `n % N`, in its variation `n // N`."""

    def __init__(self, image_set: ImageSet, transform: Transform, seed: int, epoch: int) -> None:
        super().__init__(transform, seed, epoch)
        self.image_set = image_set

    def load(self, member: int) -> Sample:
        index = member % len(self.image_set)
        label = int(self.image_set.labels[index])
        try:
            image = self.image_set.image(index)
        except BadImage as error:
            return Sample(index, label, str(error))
        self.seed_for(member)
        return Sample(index, label, self.transform(image))


class RowSamples(Samples):
    """Pictures of a stream of `count`, out of the rows as they came."""

    def __init__(self, count: int, transform: Transform, seed: int, epoch: int) -> None:
        super().__init__(transform, seed, epoch)
        self.count = count

    def load(self, member: Row) -> Sample:
        index, image = member.number % self.count, decoded(member)
        if isinstance(image, BadImage):
            return Sample(index, member.label, str(image))
        self.seed_for(member.number)
        return Sample(index, member.label, self.transform(image))


# --- Processes that load: how they start, stop in silence, and are missed when they die.

# How torch says it, in its signal handler and where it waits for a batch.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is )?(?P<how>[^.\n]*)")
_DIED = (
    "A loading process died ({}), most often for lack of memory; use fewer --num-workers; a "
    "training goes on with --resume."
)

# What the main process sees of one that dies while it hands a batch over, before torch notices;
# the same errors from within loading begin with other words.
_CUT_OFF = (ConnectionError, EOFError, FileNotFoundError)
_SENT_ON = "Caught "


class BatchLoader:
    """Yields batches that are prepared by other processes, if wanted, and says if one died.

    Args:
        samples: Turns members of batches into batches.
        batches: What each batch is made of, in order.
        num_workers: Processes that load; 0 loads in this one.
    """

    def __init__(
        self, samples: Samples, batches: Iterable[Sequence[Any]], num_workers: int
    ) -> None:
        self.batches = batches
        with _as_many_as_wanted():
            self._loader = DataLoader(
                cast("Dataset", samples),
                batch_sampler=cast("Any", batches),
                collate_fn=samples.collate,
                num_workers=num_workers,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_prepare_worker,
                # The loader draws a number when iteration begins: not from the global generator.
                generator=torch.Generator(),
            )

    def __iter__(self) -> Iterator[Batch]:
        with dead_workers_explained():
            with _as_many_as_wanted():
                iterator = iter(self._loader)
            try:
                yield from iterator
            except _CUT_OFF as error:
                if self._loader.num_workers == 0 or str(error).startswith(_SENT_ON):
                    raise
                raise UserError(_DIED.format("in the middle of a batch")) from error
            finally:
                _end_workers(iterator)


@contextmanager
def _as_many_as_wanted() -> Generator[None]:
    """Silences torch where it warns of more workers than cores: their number is the user's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _end_workers(iterator: Any) -> None:
    """Ends them now, whoever still holds the iterator: a traceback does.

    Until torch has forgotten them, every signal that a process ended can raise an error.
    """
    end = getattr(iterator, "_shutdown_workers", None)
    if end is None:
        return
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such signal either
        return end()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        end()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def dead_workers_explained() -> Generator[None]:
    """Turns torch's word for a loading process that died into one sentence.

    torch raises from a signal handler, so wherever the main process happens to be: put the whole
    loop over a loader into this block.

    Raises:
        UserError: In place of that RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        death = _DEATH.search(str(error))
        if death is None:
            raise
        raise UserError(_DIED.format(death["how"].strip())) from error


def _prepare_worker(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the main one ends its workers itself.

    If it stops while a batch is being handed over, the worker's end of the pipe breaks: nothing
    that the user should read about. Errors in loading travel another way and are still reported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_all_but_broken_pipes


def _report_all_but_broken_pipes(kind: Any, error: BaseException, trace: Any) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


# Batches of a stream that wait in memory before they go to the processes that decode them.
_READ_AHEAD = 4


def make_loader(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    start_batch: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
    repeats: int = 1,
    share: Share = WHOLE,
) -> BatchLoader:
    """Returns a loader over one epoch that yields a `Batch` at a time.

    The order depends on (seed, epoch, repeats) alone, and what a random transform does to a
    picture on (seed, epoch, index, repeat) alone: neither the number of workers, nor where the
    epoch starts, nor a bad picture changes any other. The global generators are left as they were.

    A `StreamSet` is read by this process (by each of `world_size`) and decoded by the workers; its
    index is the position in the epoch. To start at a later batch, it is read up to there.

    Args:
        batch_size: Pictures per batch of all processes together.
        start_batch: Batches to leave out at the start of the epoch; they are not decoded.
        num_workers: Processes that load; 0 loads in this one.
        drop_last: Leave out a last batch that is not full.
        repeats: Varied copies of a picture in a batch (`cvt.data.order.epoch_order`).
        share: The part of every batch that this process gets, and in how many chunks.

    Raises:
        UserError: A number is out of range, there are too few pictures for one batch, or a batch
            cannot be shared out evenly; while loading: a worker died, or a stream broke off.
    """
    _check_numbers(batch_size, seed, epoch, start_batch, num_workers)
    if len(image_set) < (batch_size if drop_last else 1):
        raise UserError(
            f"Got {len(image_set)} images and batch_size {batch_size}, expected at least one full "
            "batch; make the batch smaller."
        )
    chunks_of(range(batch_size), share)  # refuses before it is late
    shuffled = {"shuffle": shuffle, "seed": seed, "epoch": epoch, "repeats": repeats}
    cut = {"batch_size": batch_size, "start_batch": start_batch, "drop_last": drop_last}
    if isinstance(image_set, StreamSet):
        chunks = stream_batches(epoch_rows(image_set, **shuffled), **cut, share=share)
        samples = RowSamples(len(image_set), transform, seed, epoch)
        return BatchLoader(samples, read_ahead(chunks, _READ_AHEAD), num_workers)
    chunks = set_batches(epoch_order(len(image_set), **shuffled), **cut, share=share)
    return BatchLoader(NumberedSamples(image_set, transform, seed, epoch), chunks, num_workers)


def make_eval_loader(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """Returns a loader over all pictures in order, or over one process's share of them.

    Every picture is in exactly one share; all shares have as many batches, the last of which may
    be empty (`cvt.data.order.share_of_rank`).

    Raises:
        UserError: A number is out of range, or there are no pictures; while loading: a worker
            died, or a stream broke off.
    """
    _check_numbers(batch_size, 0, 0, 0, num_workers)
    if not len(image_set):
        raise UserError("Got no images, expected at least one.")
    if isinstance(image_set, StreamSet):
        rows = read_ahead(stream_share(image_set, batch_size, rank, world_size), _READ_AHEAD)
        return BatchLoader(RowSamples(len(image_set), transform, 0, 0), rows, num_workers)
    mine = share_of_rank(len(image_set), batch_size, rank, world_size)
    return BatchLoader(NumberedSamples(image_set, transform, 0, 0), mine, num_workers)


def batch_names(
    image_set: ImageSet, *, batch_size: int, seed: int, epoch: int, repeats: int, batch: int
) -> list[str]:
    """Returns the names of all pictures of a batch of a shuffled epoch.

    Raises:
        UserError: The set is a stream, which is read up to there, and it broke off.
    """
    start, stop = batch * batch_size, (batch + 1) * batch_size
    if isinstance(image_set, StreamSet):
        rows = epoch_rows(image_set, shuffle=True, seed=seed, epoch=epoch, repeats=repeats)
        return [row.name for row in islice(rows, start, stop)]
    order = epoch_order(len(image_set), shuffle=True, seed=seed, epoch=epoch, repeats=repeats)
    return [image_set.name(number % len(image_set)) for number in order[start:stop]]


def _check_numbers(
    batch_size: int, seed: int, epoch: int, start_batch: int, num_workers: int
) -> None:
    numbers = {"seed": seed, "epoch": epoch, "start_batch": start_batch, "num_workers": num_workers}
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"Got {name} {value}, expected 0 or more.")
    if batch_size < 1:
        raise UserError(f"Got batch_size {batch_size}, expected 1 or more.")
