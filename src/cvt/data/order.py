"""Which picture goes where: the order of an epoch, and each process's part of every batch."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counting
from itertools import islice
from typing import TypeVar

import numpy as np

from cvt.data.streams import Row, StreamSet
from cvt.errors import UserError

T = TypeVar("T")


def epoch_order(count: int, *, shuffle: bool, seed: int, epoch: int, repeats: int = 1) -> list[int]:
    """Returns the numbers that an epoch goes through, a function of its arguments alone.

    With `repeats`, every picture of a random `1 / repeats` of them comes `repeats` times in
    succession, so that an epoch keeps its length. Number `n` stands for picture `n % count`, in
    its variation `n // count`.

    Source: Hoffer et al., arXiv 1901.09335 (repeated augmentation), as DeiT uses it.
    """
    if not shuffle:
        return list(range(count))
    pictures = np.random.default_rng((seed, epoch)).permutation(count)
    if repeats == 1:
        return pictures.tolist()
    copies = np.repeat(pictures, repeats) + np.tile(np.arange(repeats) * count, count)
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

    A batch of `world_size * accum_steps` chunks deals its pictures out like cards: chunk `c` takes
    every so-manieth picture from the `c`-th on, so that copies of one picture meet in no chunk.
    Process `rank` has the chunks `rank`, `rank + world_size`, ...: which chunks a batch has
    depends on their number alone, not on who computes them.

    Raises:
        UserError: The batch does not divide into that many chunks.
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
    """Returns the batches of `count` pictures in order that one of several processes measures.

    Every picture belongs to one batch, whose pictures do not depend on the number of processes:
    in other company a network's answers would round differently. All processes have the same
    number of batches, the last of which may be empty, because layers spread over processes work
    only in step.
    """
    starts = range(0, count, batch_size)
    most = -(-len(starts) // world_size)
    mine = [
        list(range(start, min(start + batch_size, count))) for start in starts[rank::world_size]
    ]
    return mine + [[]] * (most - len(mine))


# --- The batches of a stream, as much a function of (seed, epoch) as those of other sets.


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
