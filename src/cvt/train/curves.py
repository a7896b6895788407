"""The picture of a run: losses, accuracy and learning rate over the epochs."""

from pathlib import Path
from typing import Any

from cvt.files import atomic_path
from cvt.train.progress import EpochRow


def save_curves(path: Path, history: list[EpochRow], title: str) -> None:
    """Draws three panels into a PNG. The epoch whose weights were kept is marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row.epoch for row in history]
    marker = "o" if len(history) < 15 else ""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    losses, accuracy, rate = figure.subplots(1, 3)
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [getattr(row, name) for row in history], marker=marker, label=label)
    losses.set(title="Loss (nats)")
    losses.legend(frameon=False)
    accuracy.plot(epochs, [row.val_top1 for row in history], color="C1", marker=marker)
    accuracy.set(title="Validation top-1 (%)")
    _mark_best(accuracy, history)
    rate.plot(epochs, [row.lr for row in history], color="C2", marker=marker)
    rate.set(title="Learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (losses, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _mark_best(axes: Any, history: list[EpochRow]) -> None:
    best = history[0]
    for row in history[1:]:
        best = row if row.is_better_than(best) else best
    label = f"best: {best.val_top1:.2f} in epoch {best.epoch}"
    axes.plot(best.epoch, best.val_top1, "o", color="C3", label=label)
    axes.legend(frameon=False, loc="lower right")
