"""What a model's frozen features are worth on some data: nearest neighbours, linear classifier."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cvt.data import DataSplits, ImageSet, load_data
from cvt.data.image_set import SPLITS
from cvt.errors import UserError, did_you_mean
from cvt.evaluate.answers import Pace
from cvt.evaluate.features import Features, extract
from cvt.evaluate.knn import knn_votes
from cvt.evaluate.linear import fit_linear, linear_shares
from cvt.evaluate.model_facts import open_model, run_data
from cvt.parts.contract import VisionModel
from cvt.train.world import World, join_world

METHODS = ("knn", "linear", "both")


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How well one classifier on top of the features does on one split.

    Args:
        method: `knn` or `linear`.
        split: `val` or `test`. The linear classifier's `C` was chosen on val, which flatters its
            figure there a little.
        top1: Percentage of pictures whose most likely class is right.
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
        num_train: Pictures that the classifiers learned from.
        num_features: Width of the features.
        num_found: Pictures in all splits together.
        val_was_cut: Whether val was cut out of the training pictures, for want of such a split.
        notes: What else the reader should know of the data.
        bad: One sentence for each picture that could not be read and was left out.
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
        scores = [
            {name: value for name, value in asdict(score).items() if value is not None}
            for score in self.scores
        ]
        return {
            **vars(self),
            "scores": scores,
            "bad": list(self.bad),
            "notes": list(self.notes),
        }


def probe(
    model: str | Path | VisionModel,
    data: str | DataSplits,
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
    some hundred thousand pictures. Arguments that are not described: as `cvt.evaluate.evaluate`.

    Args:
        model: A checkpoint, a run's folder (its best weights), a published name, or a model; its
            own classes do not matter.
        k: Neighbours that vote, or all training pictures if there are fewer.
        on_stage: Called with a few words about each thing that takes long.

    Raises:
        UserError: Model or data cannot be used, or `method` or `k` is out of range.
    """
    _check(method, k)
    pace = Pace(batch_size, num_workers, device, precision, on_start, on_batch)
    with join_world(device) as world:
        network = open_model(model, world)
        if isinstance(data, str):
            run = run_data(model)
            cut = {"seed": run.seed, "val_fraction": run.val_fraction} if run else {}
            data = world.in_turn(
                partial(load_data, data, data_dir=data_dir, download=download, **cut)
            )
        found = _features(network, data, pace, world, on_stage)
        num_classes = len(data.classes)
        scores = world.on_main(lambda: _scores(found, num_classes, method, k, on_stage))
    return Probe(
        scores=scores,
        num_train=len(found["train"].labels),
        num_features=network.num_features,
        num_found=sum(len(each) for each in _splits(data).values()),
        val_was_cut=data.val_was_cut,
        bad=(*data.unreadable, *(sentence for each in found.values() for sentence in each.bad)),
        notes=data.notes,
    )


def _check(method: str, k: int) -> None:
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise UserError(f"Got method {method!r}, expected one of {', '.join(METHODS)}.{hint}")
    if k < 1:
        raise UserError(f"Got k {k}, expected 1 or more.")


def _features(
    network: VisionModel,
    data: DataSplits,
    pace: Pace,
    world: World,
    on_stage: Callable[[str], None] | None,
) -> dict[str, Features]:
    found = {}
    for split, pictures in _splits(data).items():
        _say(on_stage, f"features of {split}")
        found[split] = extract(network, pictures, pace, world)
    return found


def _splits(data: DataSplits) -> dict[str, ImageSet]:
    splits = {split: getattr(data, split) for split in SPLITS}
    return {split: pictures for split, pictures in splits.items() if pictures is not None}


def _scores(
    found: dict[str, Features],
    num_classes: int,
    method: str,
    k: int,
    on_stage: Callable[[str], None] | None,
) -> tuple[ProbeScore, ...]:
    train = found["train"]
    measured = [split for split in found if split != "train"]
    scores = []
    if method in ("knn", "both"):
        k = min(k, len(train.labels))
        for split in measured:
            _say(on_stage, f"nearest neighbours of {split}")
            shares = knn_votes(train, found[split].vectors, num_classes, k)
            scores.append(_score("knn", split, shares, found[split].labels, {"k": k}))
    if method in ("linear", "both"):
        classifier, strength = fit_linear(train, found["val"], on_stage)
        for split in measured:
            shares = linear_shares(classifier, found[split].vectors, num_classes)
            scores.append(_score("linear", split, shares, found[split].labels, {"C": strength}))
    return tuple(scores)


def _score(
    method: str, split: str, shares: np.ndarray, labels: np.ndarray, setting: dict[str, float]
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


def _say(on_stage: Callable[[str], None] | None, words: str) -> None:
    if on_stage:
        on_stage(words)
