"""Batches whose content depends on (seed, epoch) alone: a run can stop and go on anywhere."""

from itertools import islice

from cvt.data.image_set import ImageSet
from cvt.data.order import WHOLE, Share, chunks_of, epoch_order, set_batches, share_of_rank
from cvt.data.read_ahead import read_ahead
from cvt.data.samples import NumberedSamples, RowSamples
from cvt.data.stream_order import epoch_rows, stream_batches, stream_share
from cvt.data.stream_set import StreamSet
from cvt.data.transforms import Transform
from cvt.data.workers import BatchLoader
from cvt.errors import UserError

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
