"""What a model's frozen features are worth on some data: nearest neighbours, linear classifier."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cvt.data import DataSplits, load_data
from cvt.data.sets import SPLITS
from cvt.errors import UserError, unknown
from cvt.evaluation.answers import Batching, opened_model, run_data
from cvt.evaluation.linear import Features, extract, fit_linear
from cvt.parts.model import VisionModel
from cvt.plain import to_plain

METHODS = ("knn", "linear", "both")


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How well one classifier on top of the features does on one split.

    Args:
        method: `knn` or `linear`.
        split: `val` or `test`. The linear classifier's `C` was chosen on val, which flatters its
            figure there a little.
        top1: Percentage of images whose most likely class is right.
        top5: Percentage whose class is among the five most likely; None up to five classes. A
            class without any vote is not among them.
        setting: `k`, or `C`.
    """

    method: str
    split: str
    top1: float
    top5: float | None
    num_images: int
    setting: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the frozen features of a model are worth.

    Args:
        scores: One for each method and split.
        num_train: Images that the classifiers learned from.
        num_features: Width of the features.
        num_found: Images in all splits together.
        val_was_cut: Whether val was cut out of the training images, for want of such a split.
        notes: What else the reader should know of the data.
        bad: One sentence for each image that could not be read and was left out.
    """

    scores: tuple[ProbeScore, ...]
    num_train: int
    num_features: int
    num_found: int
    val_was_cut: bool
    bad: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without figures that are None."""
        return to_plain(self, none=False)


def probe(
    model: str | Path | VisionModel,
    data: str | Path | DataSplits = "digits",
    *,
    method: Literal["knn", "linear", "both"] = "both",
    k: int = 20,
    data_dir: str | None = None,
    download: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_stage: Callable[[str], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Probe:
    """Measures frozen features: fitted on the training split, measured on val and test.

    The features are what the model's classifier is fed with, in eval mode and with the evaluation
    transform. They are held in memory and the classifiers fitted on the CPU, for data of up to
    some hundred thousand images. Arguments that are not described: as `cvt.evaluate`.

    Args:
        model: A checkpoint, a run's folder (its best weights), a published name, or a model; its
            own classes do not matter.
        k: Neighbours that vote, or all training images if there are fewer.
        on_stage: Called with a few words about each thing that takes long.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if k < 1:
        raise UserError(f"Got k {k}, expected 1 or more.")
    say = on_stage or (lambda words: None)
    batching = Batching(batch_size, num_workers, device, precision, on_start, on_batch)
    with opened_model(model, batching) as tested:
        if isinstance(data, str | Path):
            run = run_data(model, tested.network)
            cut = {"seed": run.seed, "val_fraction": run.val_fraction} if run else {}
            data = tested.world.in_turn(
                partial(load_data, str(data), data_dir=data_dir, download=download, **cut)
            )
        splits = {split: getattr(data, split) for split in SPLITS}
        splits = {split: images for split, images in splits.items() if images is not None}
        found = {}
        for split, images in splits.items():
            say(f"features of {split}")
            found[split] = extract(tested, images)
        num_classes = len(data.classes)
        scores = tested.world.on_main(lambda: _scores(found, num_classes, method, k, say))
    return Probe(
        scores=scores,
        num_train=len(found["train"].labels),
        num_features=tested.network.num_features,
        num_found=sum(map(len, splits.values())),
        val_was_cut=data.val_was_cut,
        bad=(*data.unreadable, *(sentence for each in found.values() for sentence in each.bad)),
        notes=data.notes,
    )


def _scores(
    found: dict[str, Features],
    num_classes: int,
    method: str,
    k: int,
    say: Callable[[str], None],
) -> tuple[ProbeScore, ...]:
    train = found["train"]
    measured = [split for split in found if split != "train"]
    scores = []
    if method in ("knn", "both"):
        k = min(k, len(train.labels))
        for split in measured:
            say(f"nearest neighbours of {split}")
            shares = knn_votes(train, found[split].vectors, num_classes, k)
            scores.append(_score("knn", split, shares, found[split].labels, {"k": k}))
    if method in ("linear", "both"):
        head = fit_linear(train, found["val"], num_classes, say)
        for split in measured:
            shares = head.shares(found[split].vectors)
            scores.append(_score("linear", split, shares, found[split].labels, head.setting))
    return tuple(scores)


def _score(
    method: str, split: str, shares: np.ndarray, labels: np.ndarray, setting: Mapping[str, float]
) -> ProbeScore:
    best = np.argsort(-shares, axis=1, kind="stable")[:, :5]
    hits = (best == labels[:, None]) & (np.take_along_axis(shares, best, axis=1) > 0)
    return ProbeScore(
        method=method,
        split=split,
        top1=100 * float(hits[:, 0].mean()),
        top5=100 * float(hits.any(axis=1).mean()) if shares.shape[1] > 5 else None,
        num_images=len(labels),
        setting=setting,
    )


# --- The nearest neighbours among the training images vote on what an image shows.

# DINO's, which most published k-NN figures on frozen features use.
TEMPERATURE = 0.07


def knn_votes(train: Features, vectors: np.ndarray, num_classes: int, k: int) -> np.ndarray:
    """Returns each class's share of the votes, (N, num_classes); rows add up to 1.

    The `k` training images of the highest cosine similarity s vote for their class with the
    weight exp(s / 0.07). The search is exact; there are no more neighbours than images.

    Shape: `vectors` (N, num_features).

    Source: Caron et al., DINO, arXiv 2104.14294, section 4.1 and appendix F.1; Wu et al.,
    arXiv 1805.01978, section 3.4.
    """
    from sklearn.neighbors import KNeighborsClassifier

    votes = KNeighborsClassifier(
        n_neighbors=min(k, len(train.labels)),
        weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
        algorithm="brute",
        metric="cosine",
    ).fit(train.vectors, train.labels)
    shares = np.zeros((len(vectors), num_classes))
    shares[:, votes.classes_] = votes.predict_proba(vectors)
    return shares
