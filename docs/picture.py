"""Draws the README's picture; every number in it is counted by `cvt.describe`.

The photograph is scikit-learn's sample image flower.jpg (flickr.com/photos/vultilion, CC BY 2.0).

Run: python docs/picture.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from sklearn.datasets import load_sample_image

import cvt
from cvt.systems.cvt import ROWS

NAME = "cvt_13"
COLOURS = ("#9ecae1", "#4292c6", "#08519c")
INK = "#1b2733"
SOFT = "#5b6b7a"


def draw(path: Path) -> None:
    """Writes the three stages of CvT-13 with their grids, costs and projections."""
    sheet, rows = cvt.describe(NAME), ROWS[NAME].stages
    figure = Figure(figsize=(12, 4.2), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 120), ylim=(0, 42))
    axes.axis("off")
    _title(axes, sheet)
    centre, x = 24.5, 3.0
    photo = load_sample_image("flower.jpg")[:, 106:533]
    axes.imshow(photo, extent=(x, x + 17, centre - 8.5, centre + 8.5), aspect="auto", zorder=2)
    _label(axes, x + 8.5, centre - 10.3, "image", f"{sheet.size[0]} × {sheet.size[1]} × 3")
    x += 17
    for index, (row, stage) in enumerate(zip(rows, sheet.stages, strict=True)):
        x = _arrow(axes, x, centre, row)
        side = (19.0, 15.0, 11.0)[index]
        _grid(axes, x, centre, side, stage.grid[0] // 2, COLOURS[index])
        _describe(axes, x + side / 2, centre, side, row, stage, sheet)
        x += side
    axes.add_patch(
        FancyArrowPatch(
            (x + 1, centre), (x + 7, centre), arrowstyle="-|>", mutation_scale=13, color=INK
        )
    )
    axes.text(x + 8, centre, "class token\n→ 1000 labels", va="center", color=INK, fontsize=10)
    axes.text(
        60,
        1.6,
        "Each square of the grids is 2 × 2 tokens: a query each, and together one key and value, "
        "because k and v are read at stride 2.",
        ha="center",
        color=SOFT,
        fontsize=9,
    )
    figure.savefig(path)


def _title(axes, sheet) -> None:
    axes.text(3, 38.5, "CvT-13", fontsize=19, weight="bold", color=INK, va="center")
    axes.text(
        15.5,
        38.3,
        f"{sheet.num_params / 1e6:.2f} M parameters, {sheet.macs / 1e9:.3f} G multiply-adds; "
        "convolutions embed the tokens and project q, k, v; no position embedding",
        fontsize=11,
        color=SOFT,
        va="center",
    )


def _grid(axes, x, centre, side, cells, face) -> None:
    axes.add_patch(
        Rectangle((x, centre - side / 2), side, side, facecolor=face, edgecolor=INK, linewidth=0.8)
    )
    for step in range(1, cells):
        at = step * side / cells
        axes.plot([x + at] * 2, [centre - side / 2, centre + side / 2], color="white", lw=0.45)
        axes.plot([x, x + side], [centre - side / 2 + at] * 2, color="white", lw=0.45)


def _arrow(axes, x, centre, row) -> float:
    axes.add_patch(
        FancyArrowPatch(
            (x + 1, centre), (x + 10.5, centre), arrowstyle="-|>", mutation_scale=13, color=INK
        )
    )
    kernel = row.embed_kernel
    axes.text(x + 5.7, centre + 1.6, f"{kernel} × {kernel}", ha="center", fontsize=9, color=INK)
    axes.text(
        x + 5.7, centre - 3.2, f"stride {row.embed_stride}", ha="center", fontsize=9, color=SOFT
    )
    return x + 11.5


def _describe(axes, x, centre, side, row, stage, sheet) -> None:
    token = " + class token" if row.cls_token else ""
    _label(
        axes,
        x,
        centre - side / 2 - 1.8,
        f"{stage.grid[0]} × {stage.grid[1]} × {stage.embed_dim}{token}",
        f"{stage.depth} block{'s' if stage.depth > 1 else ''}, {stage.num_heads} "
        f"head{'s' if stage.num_heads > 1 else ''}\n"
        f"keys and values: {stage.kv_grid[0]} × {stage.kv_grid[1]}\n"
        f"{stage.num_params / 1e6:.2f} M parameters, {100 * stage.macs / sheet.macs:.0f} % of work",
    )


def _label(axes, x, y, first, rest) -> None:
    axes.text(x, y, first, ha="center", va="top", fontsize=10, color=INK, weight="bold")
    axes.text(x, y - 1.9, rest, ha="center", va="top", fontsize=8.5, color=SOFT, linespacing=1.45)


if __name__ == "__main__":
    draw(Path(__file__).with_name("cvt_13.png"))
