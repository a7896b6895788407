"""The confusion matrix as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from cvt.figures import picture, words

_NAMED_UP_TO = 40
_NUMBERED_UP_TO = 20


def save_confusion(path: Path, confusion: np.ndarray, names: list[str]) -> None:
    """Draws an (N, N) matrix as shares of its rows, in the format of the path's suffix.

    Up to 40 classes carry their names, up to 20 the share in percent; beyond that the picture is
    about where confusions cluster.

    Raises:
        UserError: The file cannot be written.
    """
    from matplotlib.colors import PowerNorm

    count = len(names)
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 4.5 + 0.22 * min(count, _NAMED_UP_TO)
    with picture(path, figsize=(side + 1, side), layout="constrained") as figure:
        axes = figure.subplots()
        shades = PowerNorm(gamma=0.5, vmin=0, vmax=100)  # so that a few percent can be seen
        image = axes.imshow(shares, cmap="Blues", norm=shades, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
        axes.set(
            xlabel="predicted", ylabel="true", title=f"Confusion, {int(confusion.sum()):,} images"
        )
        if count <= _NAMED_UP_TO:
            short = [words(name, 20) for name in names]
            is_long = max(map(len, short)) > 2
            axes.set_xticks(range(count), short, rotation=90 if is_long else 0)
            axes.set_yticks(range(count), short)
        if count <= _NUMBERED_UP_TO:
            _write_shares(axes, shares)


def _write_shares(axes: Any, shares: np.ndarray) -> None:
    """Numbers the cells that hold something, white on dark ones."""
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        colour = "white" if share > 30 else "black"
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
