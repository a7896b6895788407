"""Randomness as a function of the position in a run, so that resuming restores no generator."""

import torch

from cvt.data.seeding import seed_all


def seed_position(seed: int, epoch: int = 0, batch: int = 0, chunk: int = 0) -> None:
    """Seeds Python's, numpy's and torch's generators, those of GPUs included.

    Called before every chunk of every batch, so that mixing, drop path and dropout depend on
    (seed, epoch, batch, chunk) alone; and before the weights of a new model are drawn.
    """
    seed_all(seed, epoch, batch, chunk)
    torch.manual_seed(torch.initial_seed())  # gives the GPUs what the CPU has
