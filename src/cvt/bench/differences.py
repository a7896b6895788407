"""What one network has over another: paired over seeds, with its uncertainty."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean over seeds of differences within a seed, in percentage points.

    Runs with the same seed see the same pictures in the same order, so their difference is less
    noisy than the accuracies are. The interval covers the seeds alone: another draw of test
    pictures is not in it. With one seed there is none.

    Args:
        per_seed: The differences, by seed.
        standard_error: Standard deviation of those (n - 1) over the root of n.
        half_width: Of Student's 95 % interval around the mean.
    """

    mean: float
    per_seed: Mapping[int, float]
    standard_error: float | None
    half_width: float | None

    @property
    def is_resolved(self) -> bool:
        """Whether the interval leaves out 0, so that the sign is more than chance."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "mean": self.mean,
            "per_seed": {str(seed): value for seed, value in self.per_seed.items()},
            "standard_error": self.standard_error,
            "half_width": self.half_width,
            "confidence": CONFIDENCE,
            "resolved": self.is_resolved,
        }


def paired_difference(
    ours: Mapping[int, float], reference: Mapping[int, float]
) -> Difference | None:
    """Subtracts accuracies of the same seed; None where no seed has both.

    Args:
        ours: Top-1 in percent by seed.
        reference: The same of what it is compared with.
    """
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    per_seed = {seed: ours[seed] - reference[seed] for seed in seeds}
    count, mean = len(seeds), math.fsum(per_seed.values()) / len(seeds)
    if count == 1:
        return Difference(mean=mean, per_seed=per_seed, standard_error=None, half_width=None)
    variance = math.fsum((each - mean) ** 2 for each in per_seed.values()) / (count - 1)
    error = math.sqrt(variance / count)
    return Difference(
        mean=mean,
        per_seed=per_seed,
        standard_error=error,
        half_width=error * _student(count - 1),
    )


def compare_signs(ours: Difference, published: float) -> str:
    """Says whether a difference has the sign of the paper's, as far as seeds can tell."""
    same = ours.mean * published > 0 or ours.mean == published == 0
    words = "same sign" if same else "opposite sign" if ours.mean * published < 0 else "no sign"
    if ours.half_width is None:
        return f"{words}, one seed"
    return words if ours.is_resolved else f"{words}, not resolved"


def _student(freedom: int) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # comes with scikit-learn

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
