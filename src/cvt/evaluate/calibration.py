"""Whether a model is as often right as it says."""

import numpy as np


def expected_calibration_error(
    confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 15
) -> float:
    """Returns the mean distance, 0 to 1, of accuracy from confidence over equal-width bins.

    Each bin counts by its number of answers.

    Shape: `confidences` (N,) in 0..1 and `is_right` (N,), one of each per answer.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.
    """
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, is_right, num_bins) - np.bincount(bins, confidences, num_bins)
    return float(np.abs(gaps).sum() / len(confidences))
