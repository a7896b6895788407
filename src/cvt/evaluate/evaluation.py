"""The figures of an evaluation, from logits and labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvt.evaluate.calibration import Reliability, reliability
from cvt.train.validate import Logits


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many pictures it has, and percentages.

    Args:
        accuracy: Share of its pictures that were recognised (recall); None without pictures.
        precision: Share of the answers naming it that were right; None if it was never named.
    """

    name: str
    num_images: int
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model is worth on a set of pictures.

    Args:
        top1: Percentage of pictures whose most likely class is right.
        top5: Percentage whose class is among the five most likely; None up to five classes.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error over 15 bins, 0 to 1.
        reliability: Those bins.
        num_images: Pictures that were measured.
        bad: One sentence for each picture that could not be read and was left out.
        per_class: In the order of the model's outputs.
        confusion: Pictures of class i (row) that were taken for class j (column): int64, (N, N).
        split: The split that was measured, or "all".
        num_found: Pictures in all splits of the data together.
        split_was_cut: Whether that split was cut out, as the run had done, of data without one.
        notes: What else the reader should know of the data.
    """

    top1: float
    top5: float | None
    loss: float
    ece: float
    reliability: Reliability
    num_images: int
    bad: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray
    split: str | None = None
    num_found: int | None = None
    split_was_cut: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without the confusion matrix and figures that are None."""
        plain = {name: value for name, value in vars(self).items() if name != "confusion"}
        plain["reliability"] = self.reliability.to_dict()
        plain |= {"bad": list(self.bad), "notes": list(self.notes)}
        plain["per_class"] = [_without_none(asdict(score)) for score in self.per_class]
        return _without_none(plain)

    def save_confusion(self, path: str | Path) -> None:
        """Draws the confusion matrix, each row as shares of its class.

        Raises:
            UserError: The file cannot be written.
        """
        from cvt.evaluate.confusion import save_confusion

        save_confusion(Path(path), self.confusion, [score.name for score in self.per_class])

    def save_reliability(self, path: str | Path) -> None:
        """Draws accuracy against confidence, with the calibration error.

        Raises:
            UserError: The file cannot be written.
        """
        from cvt.evaluate.reliability_plot import save_reliability

        save_reliability(Path(path), self.reliability)


def summarise(answers: Logits, class_names: Sequence[str]) -> Evaluation:
    """Returns the figures of a model's answers; `class_names` are those of its outputs."""
    probabilities = answers.logits.double().softmax(dim=1)
    confidences, guesses = (each.numpy() for each in probabilities.max(dim=1))
    labels = answers.labels.numpy()
    num_classes = len(class_names)
    pairs = np.bincount(labels * num_classes + guesses, minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    bins = reliability(confidences, guesses == labels)
    return Evaluation(
        top1=answers.top_k(1),
        top5=answers.top_k(5) if num_classes > 5 else None,
        loss=answers.loss(),
        ece=bins.ece,
        reliability=bins,
        num_images=len(labels),
        bad=answers.bad,
        per_class=_class_scores(confusion, class_names),
        confusion=confusion,
    )


def _class_scores(confusion: np.ndarray, names: Sequence[str]) -> tuple[ClassScore, ...]:
    def share(hits: int, total: int) -> float | None:
        return 100 * hits / total if total else None

    right, truly, named = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassScore(
            name=name,
            num_images=int(truly[index]),
            accuracy=share(int(right[index]), int(truly[index])),
            precision=share(int(right[index]), int(named[index])),
        )
        for index, name in enumerate(names)
    )


def _without_none(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if value is not None}
