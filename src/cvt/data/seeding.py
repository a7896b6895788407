"""Randomness that belongs to one sample and leaves everyone else's alone."""

import hashlib
import random
import struct
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seeds Python's, numpy's and torch's CPU generators; timm's transforms draw from all three.

    The seeds are a hash of the key, so neighbouring keys have nothing in common; it takes a sixth
    of the time of numpy's `SeedSequence`, which matters at thousands of small pictures a second.
    `torch.manual_seed` is not used because it would reseed every GPU as well.

    Args:
        key: Whole numbers, none negative, such as (seed, epoch, index).
    """
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=20).digest()
    for_python, for_torch, for_numpy = struct.unpack("<QQL", digest)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)


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
