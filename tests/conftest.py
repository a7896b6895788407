"""What tests of every room share."""

import pytest
from randomise import randomise as randomise_model


@pytest.fixture
def randomise():
    """`randomise(model, seed=0)`: fills all weights and statistics with seeded random values."""
    return randomise_model
