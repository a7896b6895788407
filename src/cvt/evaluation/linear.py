"""Frozen features, and the linear classifiers on them: fitted, and chosen on the validation split.

A classifier comes out as one weight and one bias for the features as they are, so that it can take
the place of the network's own last layer.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from cvt.data import ImageSet
from cvt.errors import UserError
from cvt.evaluation.answers import ModelUnderTest
from cvt.parts.model import VisionModel

# --- What a frozen model makes of images before its classifier sees it.


@dataclass(frozen=True, eq=False)
class Features:
    """The pooled features of the images that could be read, N of them.

    Args:
        vectors: float32, shape (N, num_features).
        labels: int64, shape (N,).
        bad: One sentence for each image that could not be read.
    """

    vectors: np.ndarray
    labels: np.ndarray
    bad: tuple[str, ...] = ()


def extract(tested: ModelUnderTest, data: ImageSet) -> Features:
    """Returns what the classifier is fed with, in eval mode: BatchNorm stays as it was trained."""
    if tested.network.spec.global_pool == "":
        raise UserError("Got a model without pooling, expected one vector an image; set a pool.")
    found = tested.answers(data, network=_Featurizer(tested.network))
    return Features(found.logits.numpy(), found.labels.numpy(), found.bad)


class _Featurizer(nn.Module):
    def __init__(self, network: VisionModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(image), pre_logits=True)


# --- A linear classifier of them.


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """Logits (N, K) of features (N, num_features): `vectors @ weight.T + bias`.

    Args:
        method: `logistic` or `lda`.
        setting: What was chosen on the validation split: `C`, or the `shrinkage`.
        weight: float64, shape (K, num_features).
        bias: float64, shape (K,).
        known: Which classes there were images of, shape (K,). The logit of another one is ten
            below the lowest on a thousand training images.
        top1: Percentage that is right on the validation split, which `setting` was chosen on.
        loss: Mean cross-entropy there, in nats.
    """

    method: str
    setting: Mapping[str, float]
    weight: np.ndarray
    bias: np.ndarray
    known: np.ndarray
    top1: float
    loss: float

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """Returns float64, shape (N, K)."""
        return vectors @ self.weight.T + self.bias

    def shares(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the classes' probabilities, (N, K); 0 for those that there were no images of."""
        return np.where(self.known, np.exp(_log_softmax(self.logits(vectors))), 0.0)

    def measure(self, features: Features) -> tuple[float, float]:
        """Returns top-1 in percent and mean cross-entropy in nats."""
        parts = range(0, len(features.labels), _AT_ONCE)
        rows = [slice(first, first + _AT_ONCE) for first in parts]
        figures = [
            _measured(self.logits(features.vectors[each]), features.labels[each]) for each in rows
        ]
        counts = [len(features.labels[each]) for each in rows]
        top1, loss = np.average(figures, axis=0, weights=counts).tolist()
        return top1, loss


def fit_heads(
    train: Features,
    val: Features,
    num_classes: int,
    say: Callable[[str], None] = lambda words: None,
) -> list[LinearHead]:
    """Fits what there is to fit, and returns it, the best on `val` first: top-1, then loss.

    That is `fit_lda`, and `fit_linear` unless that would take minutes.
    """
    say("discriminants")
    heads = [fit_lda(train, val, num_classes)]
    iterations = _WORK // (train.vectors.size * num_classes)
    if iterations >= _LEAST_ITERATIONS:
        most = min(iterations, _MOST_ITERATIONS)
        heads.insert(0, fit_linear(train, val, num_classes, say, most))
    return sorted(heads, key=lambda head: (-head.top1, head.loss))


STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MOST_ITERATIONS = 1000
_LEAST_ITERATIONS = 50
_WORK = 2 * 10**10  # features times classes times iterations of a fit: some ten seconds of a core


def fit_linear(
    train: Features,
    val: Features,
    num_classes: int,
    say: Callable[[str], None] = lambda words: None,
    iterations: int = _MOST_ITERATIONS,
) -> LinearHead:
    """Fits logistic regressions to standardised features and keeps the best on `val`.

    Its setting is `C`, sklearn's inverse weight of the squared norm: the best is that of the
    highest top-1, then of the least loss. From the most regularised on they are tried until one is
    better in neither. One that has not converged after `iterations` takes part as it is: an early
    stop regularises, too.

    Args:
        say: Called with a few words about each fit before it begins.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scale = _Scale(train)
    heads: list[LinearHead] = []
    for strength in STRENGTHS:
        say(f"linear, C {strength:g}")
        regression = LogisticRegression(C=strength, max_iter=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(scale.vectors, train.labels)
        weight, bias = regression.coef_, regression.intercept_
        if len(weight) == 1:  # of two classes it is the second one's, against the first
            weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.stack([-bias[0], bias[0]]) / 2
        heads.append(scale.head("logistic", {"C": strength}, weight, bias, val, num_classes))
        if heads[1:] and heads[-1].top1 <= heads[-2].top1 and heads[-1].loss >= heads[-2].loss:
            break
    return min(heads, key=lambda head: (-head.top1, head.loss))


SHRINKAGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def fit_lda(train: Features, val: Features, num_classes: int) -> LinearHead:
    """Takes the class means, seen through the covariance within the classes, shrunk as suits `val`.

    Linear discriminant analysis of standardised features, its covariance drawn towards the
    identity by the share `shrinkage`; at 1 the nearest class mean has it. In closed form, so that
    thousands of classes take seconds, and a single image of a class is enough. Its logits, which
    are far too sure of themselves, are halved as often as that makes the loss on `val` less, to
    which an image that shows all classes alike is added: otherwise few images, all of them right,
    would make it certain.

    Source: Friedman, Regularized discriminant analysis, JASA 84 (1989), with one covariance.
    """
    scale = _Scale(train)
    order = np.argsort(train.labels, kind="stable")
    counts = scale.counts[:, None]
    starts = np.cumsum(scale.counts) - scale.counts
    means = np.add.reduceat(scale.vectors[order], starts, axis=0) / counts
    total = counts.sum()
    within = (scale.vectors.T @ scale.vectors - means.T @ (counts * means)) / total
    priors = np.log(scale.counts / total)
    heads = []
    for shrinkage in SHRINKAGES:
        shrunk = (1 - shrinkage) * within + shrinkage * np.eye(len(within))
        weight = np.linalg.solve(shrunk, means.T).T
        bias = priors - (weight * means).sum(axis=1) / 2
        chosen = {"shrinkage": shrinkage}
        sharp = scale.head("lda", chosen, weight, bias, val, num_classes)
        logits = sharp.logits(val.vectors)
        softer, loss = 1.0, _smoothed(logits, val.labels)
        while (next_loss := _smoothed(softer / 2 * logits, val.labels)) < loss:
            softer, loss = softer / 2, next_loss
        _, loss = _measured(softer * logits, val.labels)
        heads.append(
            replace(sharp, weight=softer * sharp.weight, bias=softer * sharp.bias, loss=loss)
        )
    return min(heads, key=lambda head: (-head.top1, head.loss))


class _Scale:
    """Standardised training features, and the way back from a classifier of them.

    Args:
        train: Of two classes at least.
    """

    def __init__(self, train: Features) -> None:
        from sklearn.preprocessing import StandardScaler

        self.classes, self.counts = np.unique(train.labels, return_counts=True)
        if len(self.classes) < 2:
            raise UserError("Got training images of a single class, expected at least two.")
        vectors = train.vectors.astype(np.float64)
        scaler = StandardScaler().fit(vectors)
        mean, spread = np.asarray(scaler.mean_), np.sqrt(np.asarray(scaler.var_))
        # What only rounding moves tells nothing, and would be blown up.
        is_alive = spread > _DEAD * np.abs(mean)
        self.mean = mean
        self.inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=is_alive)
        self.vectors = scaler.transform(vectors)
        self.vectors *= is_alive

    def head(
        self,
        method: str,
        setting: Mapping[str, float],
        weight: np.ndarray,
        bias: np.ndarray,
        val: Features,
        num_classes: int,
    ) -> LinearHead:
        """Folds the standardisation into a classifier of the classes there are, and measures it."""
        some = self.vectors[:: -(-len(self.vectors) // 1000)]
        lowest = (some @ weight.T + bias).min()
        weights = np.zeros((num_classes, len(self.mean)))
        biases = np.full(num_classes, lowest - _NEVER)
        weights[self.classes] = weight * self.inverse
        biases[self.classes] = bias - weights[self.classes] @ self.mean
        top1, loss = _measured(val.vectors @ weights.T + biases, val.labels)
        return LinearHead(
            method=method,
            setting=setting,
            weight=weights,
            bias=biases,
            known=np.isin(np.arange(num_classes), self.classes),
            top1=top1,
            loss=loss,
        )


_AT_ONCE = 1000
_DEAD = 1e-6
_NEVER = 10.0


def _measured(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    right = logits.argmax(axis=1) == labels
    loss = -_log_softmax(logits)[np.arange(len(labels)), labels].mean()
    return 100 * float(right.mean()), float(loss)


def _smoothed(logits: np.ndarray, labels: np.ndarray) -> float:
    """The loss with smoothed labels: of N images, all classes share one N+1th of each."""
    logs = _log_softmax(logits)
    share = 1 / (len(labels) + 1)
    right = logs[np.arange(len(labels)), labels].mean()
    return -float((1 - share) * right + share * logs.mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
