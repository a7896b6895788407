import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.bench.paper.findings import Difference, compare_signs, paired_difference

SCORES = st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=1, max_size=6)


def test_three_seeds_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, error 1 / sqrt(3), Student's 4.302653 for two."""
    found = paired_difference({0: 81.0, 1: 84.0, 2: 86.0}, {2: 83.0, 0: 80.0, 1: 82.0})
    assert found.per_seed == {0: 1.0, 1: 2.0, 2: 3.0}
    assert found.mean == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert not found.is_resolved  # 2 - 2.48 < 0


def test_two_seeds_by_hand():
    """Differences 1 and 1.1: error 0.05, Student's 12.706205 for one degree of freedom."""
    found = paired_difference({0: 11.0, 1: 21.1}, {0: 10.0, 1: 20.0})
    assert found.standard_error == pytest.approx(0.05)
    assert found.half_width == pytest.approx(0.63531, rel=1e-4)
    assert found.is_resolved


@pytest.mark.parametrize(
    ("count", "quantile"), [(4, 3.182446), (5, 2.776445), (6, 2.570582), (10, 2.262157)]
)
def test_the_interval_is_students(count, quantile):
    """Quantiles as printed in any table of t at 95 %, two-sided."""
    ours = {seed: float(seed % 2) for seed in range(count)}
    found = paired_difference(ours, dict.fromkeys(ours, 0.0))
    assert found.half_width / found.standard_error == pytest.approx(quantile, abs=1e-6)


def test_pairing_takes_out_what_seeds_share():
    """Seeds differ by ten points, the difference within a seed hardly does."""
    reference = {0: 60.0, 1: 70.0, 2: 80.0}
    found = paired_difference({0: 60.5, 1: 70.4, 2: 80.6}, reference)
    assert found.is_resolved
    assert found.half_width < 0.3


def test_one_seed_has_no_uncertainty():
    found = paired_difference({4: 81.0}, {4: 80.0, 5: 90.0})
    assert (found.mean, found.standard_error, found.half_width) == (1.0, None, None)
    assert not found.is_resolved
    assert compare_signs(found, 0.7) == "same sign, one seed"


def test_no_common_seed_is_no_difference():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@given(ours=SCORES, reference=SCORES)
def test_only_common_seeds_count_and_swapping_turns_the_sign(ours, reference):
    found, swapped = paired_difference(ours, reference), paired_difference(reference, ours)
    common = ours.keys() & reference.keys()
    assert (found is None) == (not common)
    if found is None:
        return
    assert found.per_seed.keys() == common
    assert found.mean == pytest.approx(-swapped.mean)
    assert found.half_width == pytest.approx(swapped.half_width)
    assert min(found.per_seed.values()) - 1e-9 <= found.mean <= max(found.per_seed.values()) + 1e-9


@given(ours=st.lists(st.floats(0, 100), min_size=2, max_size=6), shift=st.floats(-10, 10))
def test_a_shift_shared_by_all_runs_changes_nothing(ours, shift):
    scores, other = dict(enumerate(ours)), dict(enumerate(reversed(ours)))
    found = paired_difference(scores, other)
    moved = paired_difference(
        {seed: score + shift for seed, score in scores.items()},
        {seed: score + shift for seed, score in other.items()},
    )
    assert moved.mean == pytest.approx(found.mean, abs=1e-9)
    assert moved.half_width == pytest.approx(found.half_width, abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "half_width", "published", "words"),
    [
        (-0.5, 0.2, -0.1, "same sign"),
        (0.5, 0.2, -0.1, "opposite sign"),
        (0.5, 0.5, -0.1, "opposite sign, not resolved"),
        (-0.1, 0.3, -0.9, "same sign, not resolved"),
        (0.0, 0.3, -0.9, "no sign, not resolved"),
    ],
)
def test_signs(mean, half_width, published, words):
    ours = Difference(mean=mean, per_seed={}, standard_error=0.1, half_width=half_width)
    assert compare_signs(ours, published) == words
