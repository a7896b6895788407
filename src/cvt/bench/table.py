"""A comparison as a table, the best first."""

from collections.abc import Mapping, Sequence
from typing import Any

from cvt.bench.block import Block
from cvt.bench.results import Results, Spread, Standing
from cvt.train.units import say_memory


def results_block(results: Results) -> Block:
    """Returns the table of the contenders; those without a finished run come last."""
    has_top5 = any(each.spread("top5") for each in results.standings)
    columns = ["Model", "Top-1 %", "Seeds", *["Top-5 %"] * has_top5, "Parameters", "MMACs",
               "Train images/s", "Inference images/s", "Memory"]  # fmt: skip
    return Block(
        title=say_contest(results.facts),
        columns=tuple(columns),
        rows=tuple(_cells(each, has_top5) for each in ranked(results.standings)),
        notes=results.notes,
    )


def say_contest(facts: Mapping[str, Any]) -> str:
    """Returns what the figures of `Results` hold for, in a line."""
    return (
        f"{facts['data']}, {facts['split']} split: {facts['budget']} each, "
        f"{facts['image_size']}x{facts['image_size']} pixels"
    )


def ranked(standings: Sequence[Standing]) -> list[Standing]:
    """Returns them by mean top-1, the highest first."""
    return sorted(standings, key=lambda each: -each.top1.mean if each.top1 else 1.0)


def say_spread(spread: Spread | None) -> str:
    """Returns `81.25 ± 0.31 (80.9 to 81.6)`; a single value stands by itself."""
    if spread is None:
        return "-"
    if spread.std is None:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} ± {spread.std:.2f} ({spread.min:.2f} to {spread.max:.2f})"


def _cells(standing: Standing, has_top5: bool) -> tuple[str, ...]:
    top1, top5 = standing.top1, standing.spread("top5")
    failed = len(standing.errors)
    seeds = str(top1.count if top1 else 0) + (f" ({failed} failed)" if failed else "")
    memory = standing.median("memory_mb")
    return (
        standing.label,
        say_spread(top1),
        seeds,
        *([f"{top5.mean:.2f}" if top5 else "-"] if has_top5 else []),
        f"{standing.num_params:,}",
        f"{standing.macs / 1e6:,.1f}",
        _per_s(standing.median("train_images_per_s")),
        _per_s(standing.inference_images_per_s),
        "-" if memory is None else say_memory(memory),
    )


def _per_s(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
