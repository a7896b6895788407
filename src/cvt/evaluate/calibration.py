"""Whether a model is as often right as it says."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Reliability:
    """Answers sorted into equal-width bins of confidence; bin i is i / bins to (i + 1) / bins.

    A confidence on the border of two bins belongs to the upper one, and 1 to the last.

    Args:
        counts: Answers in each bin: int64, shape (bins,).
        confidences: Sum of what they claimed, each 0 to 1: shape (bins,).
        hits: How many of them were right: shape (bins,).

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """

    counts: np.ndarray
    confidences: np.ndarray
    hits: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: the bins' gaps, each weighted by its answers.

        Source: the same, equation 3.
        """
        return float(np.abs(self.hits - self.confidences).sum() / self.counts.sum())

    @property
    def edges(self) -> np.ndarray:
        """Borders of the bins, from 0 to 1: shape (bins + 1,)."""
        return np.linspace(0, 1, len(self.counts) + 1)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers in each bin, 0 to 1; nan where there are none."""
        return _means(self.hits, self.counts)

    @property
    def confidence(self) -> np.ndarray:
        """Mean confidence in each bin, 0 to 1; nan where there are none."""
        return _means(self.confidences, self.counts)

    def to_dict(self) -> list[dict[str, Any]]:
        """Returns plain data for JSON: one object for each bin that holds answers."""
        edges, accuracy, confidence = self.edges, self.accuracy, self.confidence
        return [
            {
                "from": round(float(edges[index]), 6),
                "to": round(float(edges[index + 1]), 6),
                "num_images": int(self.counts[index]),
                "confidence": float(confidence[index]),
                "accuracy": float(accuracy[index]),
            }
            for index in np.flatnonzero(self.counts)
        ]


def reliability(confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 15) -> Reliability:
    """Sorts answers by how sure the model was.

    Shape: `confidences` (N,) in 0..1 and `is_right` (N,), one of each per answer.
    """
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    return Reliability(
        np.bincount(bins, minlength=num_bins),
        np.bincount(bins, confidences, num_bins),
        np.bincount(bins, is_right, num_bins),
    )


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
