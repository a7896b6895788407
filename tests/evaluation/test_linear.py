"""Linear classifiers on features: what sklearn computes, folded into one weight and one bias."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clouds import cloud
from cvt.errors import UserError
from cvt.evaluation import STRENGTHS, Features, fit_heads, fit_lda, fit_linear

# Scores of a dozen terms of about 10, in float64, are off by some 1e-14; sklearn's own too.
EXACT = 1e-11


def sklearns(train: Features, strength: float):
    regression = LogisticRegression(C=strength, max_iter=1000)
    fitted = make_pipeline(StandardScaler(), regression)
    return fitted.fit(train.vectors.astype(np.float64), train.labels)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_logistic_regression_is_sklearns_with_its_scaler_folded_in(num_classes):
    train, val = cloud(0, num_classes=num_classes), cloud(1, num_classes=num_classes)
    train.vectors[:, 0] = 100 * train.vectors[:, 0] + 1000
    head = fit_linear(train, val, num_classes)
    expected = sklearns(train, head.setting["C"]).predict_proba(val.vectors.astype(np.float64))
    assert head.shares(val.vectors) == pytest.approx(expected, abs=EXACT)
    assert head.top1 == 100 * (expected.argmax(axis=1) == val.labels).mean()
    assert head.measure(val) == pytest.approx((head.top1, head.loss))
    picked = expected[np.arange(len(val.labels)), val.labels]
    assert head.loss == pytest.approx(-np.log(picked).mean(), abs=1e-9)


def test_the_strength_is_the_best_on_val_up_to_one_that_is_better_in_nothing():
    train, val = cloud(0), cloud(1)
    said = []
    head = fit_linear(train, val, 4, said.append)
    scores = []
    for each in STRENGTHS[: len(said)]:
        shares = sklearns(train, each).predict_proba(val.vectors.astype(np.float64))
        picked = shares[np.arange(len(val.labels)), val.labels]
        right = (shares.argmax(axis=1) == val.labels).mean()
        scores.append((right, -round(-np.log(picked).mean(), 9)))
    assert head.setting == {"C": STRENGTHS[scores.index(max(scores))]}
    assert [words.split()[-1] for words in said] == [f"{each:g}" for each in STRENGTHS][: len(said)]
    is_better = [any(a > b for b, a in zip(*pair, strict=True)) for pair in pairwise(scores)]
    assert 1 < len(said) < len(STRENGTHS)
    assert is_better == [True] * (len(said) - 2) + [False]


@pytest.mark.parametrize("shrinkage", [1.0, 0.3, 0.01])
def test_discriminants_are_sklearns(shrinkage, monkeypatch):
    """Up to the temperature, by which the logits of all classes and images are divided alike."""
    monkeypatch.setattr("cvt.evaluation.linear.SHRINKAGES", (shrinkage,))
    train, val = cloud(0, count=200), cloud(1)
    head = fit_lda(train, val, 4)
    scale = StandardScaler().fit(train.vectors.astype(np.float64))
    x = scale.transform(train.vectors.astype(np.float64))

    class Shrunk:
        """What sklearn asks for a covariance, of one class after the other."""

        def fit(self, some):
            within = np.cov(some.T, bias=True)
            self.covariance_ = (1 - shrinkage) * within + shrinkage * np.eye(6)

    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk())
    theirs.fit(x, train.labels)
    expected = theirs.decision_function(scale.transform(val.vectors.astype(np.float64)))
    ours = head.logits(val.vectors)
    ours, expected = (each - each.mean(axis=1, keepdims=True) for each in (ours, expected))
    ratio = (ours * expected).sum() / (expected * expected).sum()
    assert np.log2(ratio) == pytest.approx(round(np.log2(ratio)), abs=1e-9)
    assert ours == pytest.approx(ratio * expected, abs=1e-9)


def test_a_single_image_a_class_is_enough():
    train = cloud(0, count=400, noise=0.3)
    first = [int(np.flatnonzero(train.labels == label)[0]) for label in range(4)]
    few = Features(train.vectors[first], train.labels[first])
    heads = fit_heads(few, cloud(1, noise=0.3), 4)
    assert {head.method for head in heads} == {"logistic", "lda"}
    assert heads[0].top1 == max(head.top1 for head in heads) > 90


def test_few_images_that_are_all_right_do_not_make_it_certain():
    train = cloud(0, count=400, noise=0.01)
    val = cloud(1, noise=0.01)
    two = Features(val.vectors[:2], val.labels[:2])
    head = fit_lda(train, two, 4)
    assert head.top1 == 100
    assert 0.6 < head.shares(two.vectors).max(axis=1).min() < 0.95
    assert fit_lda(train, val, 4).shares(val.vectors).max(axis=1).min() > 0.95


def test_classes_without_images_are_never_the_answer():
    train, val = cloud(0), cloud(1)
    for head in fit_heads(train, val, 6):
        assert head.weight.shape == (6, 6)
        assert head.logits(train.vectors)[:, 4:].max() < head.logits(train.vectors)[:, :4].min() - 1
        assert (head.shares(val.vectors)[:, 4:] == 0).all()
        assert head.known.tolist() == [True] * 4 + [False] * 2


def test_features_that_only_rounding_moves_have_no_weight():
    """Standardised they would be noise, and folded back a weight of millions."""
    train, val = cloud(0), cloud(1)
    random = np.random.default_rng(0)
    for each in (train, val):
        each.vectors[:, 2] = 5 + 5e-7 * random.integers(0, 2, len(each.labels))
        each.vectors[:, 3] = 0
    for head in fit_heads(train, val, 4):
        assert (head.weight[:, 2:4] == 0).all()
        assert np.abs(head.weight).max() < 100


def test_thousands_of_classes_get_discriminants_alone_and_at_once():
    train = cloud(0, count=20_000, num_classes=5000, noise=0.1)
    val = cloud(1, count=200, num_classes=5000, noise=0.1)
    wide = replace(train, vectors=np.tile(train.vectors, (1, 8)))
    (head,) = fit_heads(wide, replace(val, vectors=np.tile(val.vectors, (1, 8))), 5000)
    assert head.method == "lda"
    assert head.top1 > 10


def test_a_single_class_is_refused():
    one = Features(np.ones((3, 2), np.float32), np.zeros(3, dtype=int))
    with pytest.raises(UserError, match="of a single class"):
        fit_heads(one, one, 2)
