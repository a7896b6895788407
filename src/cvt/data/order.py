"""Which picture goes where: the order of an epoch, and each process's part of every batch."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

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


def split_into_batches(order: Sequence[int], batch_size: int, drop_last: bool) -> list[list[int]]:
    """Cuts an order into batches; `drop_last` leaves out a last one that is not full."""
    batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    return batches[:-1] if drop_last and len(order) % batch_size else batches


def chunks_of_rank(
    batch: Sequence[T], rank: int, world_size: int, accum_steps: int
) -> list[list[T]]:
    """Returns the chunks of a batch that one process works through, in their order.

    A batch of `world_size * accum_steps` chunks deals its pictures out like cards: chunk `c` takes
    every so-manieth picture from the `c`-th on, so that copies of one picture meet in no chunk.
    Process `rank` has the chunks `rank`, `rank + world_size`, ...: which chunks a batch has
    depends on their number alone, not on who computes them.

    Raises:
        UserError: The batch does not divide into that many chunks.
    """
    chunks = world_size * accum_steps
    if len(batch) % chunks:
        raise UserError(
            f"Got batch_size {len(batch)} for {world_size} processes with accum_steps "
            f"{accum_steps}, expected a multiple of {chunks}; "
            f"take {max(len(batch) // chunks, 1) * chunks}."
        )
    return [list(batch[number::chunks]) for number in range(rank, chunks, world_size)]


def share_of_rank(count: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Returns the batches of `count` pictures in order that one of several processes measures.

    Every picture belongs to one process; all have the same number of batches, the last of which
    may be empty, because layers spread over processes work only in step.
    """
    mine = list(range(rank, count, world_size))
    most = -(-count // world_size)
    return [mine[start : start + batch_size] for start in range(0, most, batch_size)]
