import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cvt.evaluate.calibration import expected_calibration_error


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 200),
    num_classes=st.integers(2, 20),
    sharpness=st.floats(0.1, 4),
)
def test_equals_torchmetrics(seed, count, num_classes, sharpness):
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_classes, generator=generator, dtype=torch.float64)
    probabilities = (sharpness * logits).softmax(dim=1)
    labels = torch.randint(num_classes, (count,), generator=generator)
    confidences, guesses = probabilities.max(dim=1)
    assume(confidences.max() < 1 - 1e-6)  # torchmetrics gives exactly 1 a sixteenth bin
    ours = expected_calibration_error(confidences.numpy(), (guesses == labels).numpy())
    theirs = metrics.multiclass_calibration_error(
        probabilities, labels, num_classes, n_bins=15, norm="l1"
    )
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_by_hand():
    confidences = np.array([1.0, 1.0, 0.5, 0.5])
    assert expected_calibration_error(confidences, np.array([1, 1, 1, 0])) == 0
    assert expected_calibration_error(confidences, np.array([1, 0, 0, 0])) == 0.5
