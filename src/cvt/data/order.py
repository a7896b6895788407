"""Which image goes where: the order of an epoch, and each process's part of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cvt.errors import UserError

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
