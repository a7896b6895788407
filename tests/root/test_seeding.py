"""Seeds: a function of the key alone, the same on every machine, unlike for unlike keys."""

import random

import numpy as np
import pytest
import torch

from cvt.runtime import generators_kept, seed_all


def draws(*key):
    seed_all(*key)
    return random.random(), float(np.random.rand()), float(torch.rand(1, dtype=torch.float64))


def test_these_draws_never_change():
    """A run that is resumed with a newer version goes on with the same numbers."""
    assert draws(0, 1, 2) == pytest.approx(
        (0.21177582726470057, 0.2672475281045621, 0.7863622804534456), abs=1e-15
    )


def test_the_kind_of_number_does_not_matter():
    assert draws(3, 2**40, 5) == draws(np.int64(3), 2**40, np.int32(5))


def test_keys_are_told_apart():
    keys = [(a, b, c) for a in range(4) for b in range(4) for c in range(40)]
    keys += [(1,), (1, 1), (11,), (0, 11), (2**64,), (2**64 + 1,)]
    seen = np.array([draws(*key) for key in keys])
    for column in seen.T:
        assert len(set(column)) == len(keys)
        assert 0.45 < column.mean() < 0.55
    neighbours = np.corrcoef(seen[:639].ravel(), seen[1:640].ravel())[0, 1]
    between = np.corrcoef(seen.T)[np.triu_indices(3, 1)]
    assert abs(neighbours) < 0.1
    assert (abs(between) < 0.13).all()


def draw_and_fail():
    seed_all(8)
    random.gauss(0, 1)  # Python's generator keeps a second number from this
    np.random.standard_normal()
    raise RuntimeError("broken")


def test_generators_go_back_even_after_an_error():
    seed_all(7)
    expected = random.random(), np.random.rand(), torch.rand(3)
    seed_all(7)
    with pytest.raises(RuntimeError, match="broken"), generators_kept():
        draw_and_fail()
    got = random.random(), np.random.rand(), torch.rand(3)
    assert got[:2] == expected[:2]
    assert torch.equal(got[2], expected[2])
