"""What we import from timm's private modules: there, and behaving as the backbone relies on."""

import pytest
from timm.models import _features

from cvt.parts import model as timm_contract


def test_everything_private_is_imported_here_and_nowhere_else():
    assert timm_contract.__all__ == ["feature_take_indices"]
    assert timm_contract.feature_take_indices is _features.feature_take_indices


@pytest.mark.parametrize(
    ("indices", "taken", "last"),
    [
        (None, [0, 1, 2], 2),
        (1, [2], 2),
        (2, [1, 2], 2),
        ([0], [0], 0),
        ((0, 2), [0, 2], 2),
        ([-1], [2], 2),
        ([-3, 1], [0, 1], 1),
    ],
)
def test_levels_are_made_absolute(indices, taken, last):
    assert timm_contract.feature_take_indices(3, indices) == (taken, last)


@pytest.mark.parametrize("indices", [0, 4, [3], [-4]])
def test_levels_that_are_not_there_are_refused(indices):
    with pytest.raises(AssertionError, match="out of range"):
        timm_contract.feature_take_indices(3, indices)
