"""Randomness as a function of the position in a run, so that resuming restores no generator."""

import random

import numpy as np
import torch


def seed_all(seed: int, epoch: int = 0, batch: int = 0) -> None:
    """Seeds Python's, numpy's and torch's generators from a position.

    Called before every update, so that mixing, drop path and dropout depend on (seed, epoch,
    batch) alone.
    """
    state = int(np.random.SeedSequence((seed, epoch, batch)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
