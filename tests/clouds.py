"""Features that look like those of images: a cloud of points around the centre of each class."""

import numpy as np

from cvt.evaluation import Features


def cloud(seed: int, count: int = 60, num_classes: int = 4, noise: float = 1.5) -> Features:
    """Points around one centre a class, the same centres for every seed."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, count)
    centres = np.random.default_rng(99).normal(size=(num_classes, 6))
    vectors = centres[labels] + noise * random.normal(size=(count, 6))
    return Features(vectors.astype(np.float32), labels)
