"""The batches of a stream, as much a function of (seed, epoch) as those of other sets."""

from collections.abc import Generator, Iterator
from itertools import count as counting
from itertools import islice

import numpy as np

from cvt.data.order import Share, chunks_of
from cvt.data.stream_set import Row, StreamSet


def epoch_rows(
    images: StreamSet, *, shuffle: bool, seed: int, epoch: int, repeats: int = 1
) -> Iterator[Row]:
    """Yields the rows that an epoch goes through, as `cvt.data.order.epoch_order` does numbers.

    A shuffled stream is mixed as far as its source allows: the order of its files, and the rows
    within a buffer.
    """
    order = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]) if shuffle else None
    count = len(images)
    copies = (
        row._replace(number=row.number + repeat * count)
        for row in images.rows(order)
        for repeat in range(repeats)
    )
    yield from islice(copies, count)


def stream_batches(
    rows: Iterator[Row],
    *,
    batch_size: int,
    start_batch: int,
    drop_last: bool,
    share: Share,
) -> Generator[list[Row]]:
    """Yields one process's chunks of each batch; the batches before `start_batch` are read past."""
    for number in counting():
        batch = list(islice(rows, batch_size))
        if not batch or (drop_last and len(batch) < batch_size):
            return
        if number >= start_batch:
            yield from chunks_of(batch, share)


def stream_share(
    images: StreamSet, batch_size: int, rank: int, world_size: int
) -> Generator[list[Row]]:
    """Yields the batches that one process measures, as `share_of_rank` does of a set's numbers."""
    rows = iter(images.rows())
    batches = -(-len(images) // batch_size)
    for number in range(-(-batches // world_size) * world_size):
        batch = list(islice(rows, batch_size))
        if number % world_size == rank:
            yield batch
