"""A linear classifier on frozen features, its regularisation chosen on the validation split."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cvt.errors import UserError
from cvt.evaluate.features import Features

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MAX_ITER = 1000


def fit_linear(
    train: Features, val: Features, on_stage: Callable[[str], None] | None = None
) -> "tuple[Pipeline, float]":
    """Fits logistic regressions to standardised features and keeps the best on `val`.

    Returns the classifier and its `C`, sklearn's inverse weight of the squared norm; of equally
    good ones the most regularised. One that has not converged after 1000 iterations takes part as
    it is: an early stop regularises, too.

    Args:
        on_stage: Called with a few words about each fit before it begins.

    Raises:
        UserError: The training pictures that could be read are all of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train.labels)) < 2:
        raise UserError("Got training pictures of a single class, expected at least two.")
    best: tuple[float, Pipeline, float] | None = None
    for strength in STRENGTHS:
        if on_stage:
            on_stage(f"linear, C {strength:g}")
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=_MAX_ITER)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train.vectors.astype(np.float64), train.labels)
        accuracy = float(np.mean(classifier.predict(val.vectors) == val.labels))
        if best is None or accuracy > best[0]:
            best = accuracy, classifier, strength
    assert best is not None
    return best[1], best[2]


def linear_shares(classifier: "Pipeline", vectors: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the classes' probabilities, (N, num_classes); 0 for classes it was not trained on."""
    shares = np.zeros((len(vectors), num_classes))
    shares[:, classifier.classes_] = classifier.predict_proba(vectors)
    return shares
