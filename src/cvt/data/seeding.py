"""Randomness that belongs to one sample and leaves everyone else's alone."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seeds Python's, numpy's and torch's CPU generators; timm's transforms draw from all three.

    `torch.manual_seed` is not used because it would reseed every GPU as well.

    Args:
        key: Whole numbers, none negative, such as (seed, epoch, index).
    """
    seeds = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))


@contextmanager
def generators_kept() -> Generator[None]:
    """Puts the three generators back, at the end of the block, to where they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
