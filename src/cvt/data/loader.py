"""Batches whose content depends on (seed, epoch) alone: a run can stop and go on anywhere."""

import re
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cvt.data.cache import Kept
from cvt.data.image import BadImage
from cvt.data.sets import ImageSet
from cvt.data.transforms import Transform
from cvt.errors import UserError
from cvt.runtime import generators_kept, seed_all

T = TypeVar("T")


def epoch_order(count: int, *, shuffle: bool, seed: int, epoch: int, repeats: int = 1) -> list[int]:
    """Returns the numbers that an epoch goes through, a function of its arguments alone.

    With `repeats`, every image of a random `1 / repeats` of them comes `repeats` times in
    succession, so that an epoch keeps its length. Number `n` stands for image `n % count`, in
    its variation `n // count`.

    Source: Hoffer et al., arXiv 1901.09335 (repeated augmentation), as DeiT uses it.
    """
    if not shuffle:
        return list(range(count))
    images = np.random.default_rng((seed, epoch)).permutation(count)
    if repeats == 1:
        return images.tolist()
    copies = np.repeat(images, repeats) + np.tile(np.arange(repeats) * count, count)
    return copies[:count].tolist()


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process works through, and in how many steps.

    Args:
        rank: Which of `world_size` processes this is.
        world_size: Processes that share every batch.
        accum_steps: Chunks that this process's part of a batch comes in.
    """

    rank: int = 0
    world_size: int = 1
    accum_steps: int = 1


WHOLE = Share()


def chunks_of(batch: Sequence[T], share: Share) -> list[list[T]]:
    """Returns the chunks of a batch that one process works through, in their order.

    A batch of n = `world_size * accum_steps` chunks deals its images out like cards: chunk `c`
    takes every n-th image from the `c`-th on, so that copies of one image meet in no chunk.
    Process `rank` has the chunks `rank`, `rank + world_size`, ...: which chunks a batch has
    depends on their number alone, not on who computes them. A batch that does not divide into
    that many is a mistake.
    """
    world_size, accum_steps = share.world_size, share.accum_steps
    chunks = world_size * accum_steps
    if len(batch) % chunks:
        raise UserError(
            f"Got batch_size {len(batch)} for {world_size} processes with accum_steps "
            f"{accum_steps}, expected a multiple of {chunks}; "
            f"take {max(len(batch) // chunks, 1) * chunks}."
        )
    return [list(batch[number::chunks]) for number in range(share.rank, chunks, world_size)]


def set_batches(
    order: Sequence[int], *, batch_size: int, start_batch: int, drop_last: bool, share: Share
) -> list[list[int]]:
    """Returns one process's chunks of each batch, from batch `start_batch` on.

    `drop_last` leaves out a last batch that is not full.
    """
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if drop_last and len(order) % batch_size:
        batches.pop()
    return [chunk for batch in batches[start_batch:] for chunk in chunks_of(batch, share)]


def share_of_rank(count: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Returns the batches of `count` images in order that one of several processes measures.

    Every image belongs to one batch, whose images do not depend on the number of processes: in
    other company a network's answers would round differently. All processes have the same
    number of batches, the last of which may be empty, because layers spread over processes work
    only in step.
    """
    starts = range(0, count, batch_size)
    most = -(-len(starts) // world_size)
    mine = [
        list(range(start, min(start + batch_size, count))) for start in starts[rank::world_size]
    ]
    return mine + [[]] * (most - len(mine))


@dataclass(frozen=True)
class Batch:
    """The good images of a batch, B of them, and a sentence about each bad one.

    Args:
        images: float32, shape (B, C, H, W); B is 0 if every image is bad.
        labels: int64, shape (B,).
        indices: Position of each image in the image set, int64, shape (B,).
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
    """An image on its way into a batch; `image` is a sentence if it is bad."""

    index: int
    label: int
    image: Tensor | str


@dataclass(frozen=True)
class Samples:
    """From the numbers of a batch to its images, each with randomness of its own.

    Number `n` is image `n % N` of a set of N, in its variation `n // N`. What a random transform
    does depends on the seed, the epoch and that number alone.

    Args:
        kept: Where images are kept, as they are before the random steps.
    """

    image_set: ImageSet
    transform: Transform
    seed: int
    epoch: int
    kept: Kept | None = None

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        with generators_kept():
            return [self._load(number) for number in numbers]

    def _load(self, number: int) -> Sample:
        index = number % len(self.image_set)
        label = int(self.image_set.labels[index])
        try:
            image = self._prepared(index)
        except BadImage as error:
            return Sample(index, label, str(error))
        seed_all(self.seed, self.epoch, number)
        return Sample(index, label, self.transform.finish(image))

    def _prepared(self, index: int) -> Image.Image:
        image = self.kept.get(index) if self.kept else None
        if image is None:
            image = self.transform.fixed(self.image_set.image(index, self.transform.sizing))
            if self.kept:
                self.kept.put(index, image)
        return image

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Puts images together; of none, only the transform knows what C, H and W are."""
        good = [sample for sample in samples if isinstance(sample.image, Tensor)]
        if good:
            # In a loading process, torch's own function writes straight into shared memory.
            images = default_collate([sample.image for sample in good])
        else:
            with generators_kept():
                images = self.transform(Image.new("RGB", (8, 8)))[None][:0]
        return Batch(
            images,
            torch.tensor([sample.label for sample in good], dtype=torch.int64),
            torch.tensor([sample.index for sample in good], dtype=torch.int64),
            tuple(sample.image for sample in samples if isinstance(sample.image, str)),
        )


# torch's words for a death, from its signal handler and from where it waits for a batch.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is )?(?P<how>[^.\n]*)")
_DIED = (
    "A loading process died ({}), most often for lack of memory; use fewer --num-workers; a "
    "training goes on with --resume."
)

# What the main process sees if one dies while it hands over a batch, before torch notices; errors
# from within loading begin with torch's "Caught".
_CUT_OFF = (ConnectionError, EOFError, FileNotFoundError)
_SENT_ON = "Caught "


class BatchLoader:
    """Yields batches that are prepared by other processes, if wanted, and says if one died."""

    def __init__(
        self, samples: Samples, batches: Sequence[Sequence[int]], num_workers: int
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
    """Silences torch's warning of more workers than cores: their number is the user's choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _end_workers(iterator: Any) -> None:
    """Ends them now, even if a traceback still holds the iterator.

    Until torch has forgotten them, any signal that a process ended can raise an error.
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
    """Turns torch's error about a loading process that died into one sentence.

    torch raises it from a signal handler, wherever the main process happens to be: put the whole
    loop over a loader into this block.
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

    If it stops while a batch is handed over, the worker's end of the pipe breaks, which the user
    need not read about. Errors in loading travel another way and are still reported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_all_but_broken_pipes


def _report_all_but_broken_pipes(kind: Any, error: BaseException, trace: Any) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def make_loader(
    image_set: ImageSet,
    transform: Transform | Callable[[Image.Image], Tensor],
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
    kept: Kept | None = None,
) -> BatchLoader:
    """Returns a loader over one epoch that yields a `Batch` at a time.

    The order depends on (seed, epoch, repeats) alone, and what a random transform does to an
    image on (seed, epoch, index, repeat) alone: neither the number of workers, nor where the
    epoch starts, nor a bad image changes any other image. The global generators are left as they
    were.

    Args:
        batch_size: Images per batch of all processes together.
        start_batch: Batches to skip at the start of the epoch, without decoding them.
        num_workers: Processes that load; 0 loads in this one.
        drop_last: Leave out a last batch that is not full.
        repeats: Varied copies of an image in a batch (`epoch_order`).
        share: The part of every batch that this process gets, and in how many chunks.
        kept: Where decoded images are kept for the next epoch; for this transform alone.
    """
    counted = {"epoch": epoch, "start_batch": start_batch, "num_workers": num_workers}
    _check_numbers(batch_size, seed=seed, **counted)
    if len(image_set) < (batch_size if drop_last else 1):
        raise UserError(
            f"Got {len(image_set)} images and batch_size {batch_size}, expected at least one full "
            "batch; make the batch smaller."
        )
    chunks_of(range(batch_size), share)  # refuses now what would fail at the first batch
    order = epoch_order(len(image_set), shuffle=shuffle, seed=seed, epoch=epoch, repeats=repeats)
    chunks = set_batches(
        order, batch_size=batch_size, start_batch=start_batch, drop_last=drop_last, share=share
    )
    samples = Samples(image_set, _in_steps(transform), seed, epoch, kept)
    return BatchLoader(samples, chunks, num_workers)


def _in_steps(transform: Transform | Callable[[Image.Image], Tensor]) -> Transform:
    return transform if isinstance(transform, Transform) else Transform(transform)


def make_eval_loader(
    image_set: ImageSet,
    transform: Transform | Callable[[Image.Image], Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    kept: Kept | None = None,
) -> BatchLoader:
    """Returns a loader over all images in order, or over one process's share of them.

    Every image is in exactly one share; all shares have as many batches, the last of which may
    be empty (`share_of_rank`). `kept` is as for `make_loader`.
    """
    _check_numbers(batch_size, num_workers=num_workers)
    if not len(image_set):
        raise UserError("Got no images, expected at least one.")
    mine = share_of_rank(len(image_set), batch_size, rank, world_size)
    return BatchLoader(Samples(image_set, _in_steps(transform), 0, 0, kept), mine, num_workers)


def outermost(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    repeats: int = 1,
    share: Share = WHOLE,
    most: int,
) -> Batch:
    """Returns images of the first chunk of a shuffled run's first batch, as its loader yields them.

    Of a chunk with more than `2 * most` images, these are the first and the last `most`: what
    pairs the first image with the last, the second with the one before, finds the same pairs.
    """
    order = epoch_order(len(image_set), shuffle=True, seed=seed, epoch=0, repeats=repeats)
    chunk = chunks_of(order[:batch_size], share)[0]
    if len(chunk) > 2 * most:
        even = len(chunk) // 2 * 2
        chunk = chunk[:most] + chunk[even - most : even]
    samples = Samples(image_set, transform, seed, 0)
    return samples.collate(samples.__getitems__(chunk))


def batch_names(
    image_set: ImageSet, *, batch_size: int, seed: int, epoch: int, repeats: int, batch: int
) -> list[str]:
    """Returns the names of all images of a batch of a shuffled epoch."""
    order = epoch_order(len(image_set), shuffle=True, seed=seed, epoch=epoch, repeats=repeats)
    numbers = order[batch * batch_size : (batch + 1) * batch_size]
    return [image_set.name(number % len(image_set)) for number in numbers]


def _check_numbers(batch_size: int, **others: int) -> None:
    for name, value in others.items():
        if value < 0:
            raise UserError(f"Got {name} {value}, expected 0 or more.")
    if batch_size < 1:
        raise UserError(f"Got batch_size {batch_size}, expected 1 or more.")
