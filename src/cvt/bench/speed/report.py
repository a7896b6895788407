"""A bench as the Markdown page that quotes can point to, and as an image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cvt import tables as markdown
from cvt.bench.speed.forms import read_form
from cvt.bench.speed.plan import Setting, say_threads
from cvt.bench.speed.results import AGREEMENT, Measurement, SpeedResult, SpeedResults, say_rate
from cvt.figures import drawing, words


def report_text(results: SpeedResults) -> str:
    """Returns the page: command, machine, tables, notes."""
    facts = results.facts
    where = [f"{device}: {name}" for device, name in facts.hardware.items()]
    around = [f"{name}={value}" for name, value in facts.environment.items()]
    software = ", ".join(f"{name} {each}" for name, each in facts.software.items())
    lines = [
        "# Speed",
        "",
        "```",
        results.config.command,
        "```",
        "",
        f"- Hardware: {markdown.text('; '.join(where))}",
        f"- Software: {markdown.text(software)}",
        f"- Environment: {', '.join(map(markdown.code, around)) or 'nothing set'}",
        f"- {markdown.text(_when(results.measured))}",
        "",
        *(table.to_markdown() for table in results.tables),
        "## Notes",
        "",
        *(f"- {markdown.text(note)}" for note in notes_of(results)),
    ]
    return "\n".join(lines) + "\n"


def notes_of(results: SpeedResults) -> list[str]:
    """Returns the sentences that say what the figures mean, and what failed."""
    forms = dict.fromkeys(row.form for row in results.rows)
    does_train = any(row.task == "training" for row in results.rows)
    peaks = "; ".join(
        f"{device}, {dtype}{say_threads(device, n)}: {peak:,.0f} GFLOP/s"
        for (device, dtype, n), peak in results.peaks.items()
    )
    notes = [
        *(f"{name}: {read_form(name).words}." for name in forms),
        "Images/s: the median over the rounds, in brackets the slowest and the fastest. A round "
        "measures every entry once, in a process of its own, one at a time and in a shuffled "
        f"order, by the median call of at least {results.config.seconds:g} s.",
        f"Ratio: to {results.plan.base_words}, of the same round; the median over the rounds, in "
        "brackets the smallest and the largest.",
        "Memory above the model: the most that was taken in the timed calls above what was there "
        "before the first one: resident memory of the process on a CPU (a compiler's own "
        "included), tensors on a GPU; the median over the rounds.",
        "First call: from the model to its first answer, the making of the form included; the "
        "longest of the rounds, as later ones may find what was compiled before.",
        "Of peak: two operations for each multiply-add of the model as it is written"
        f"{', times three in training,' if does_train else ''} against the fastest large matrix "
        "product in the same processes, torch's own or, where there is one, oneDNN's with packed "
        f"weights ({peaks or 'none measured'}); none for int8.",
    ]
    if does_train:
        notes.append(
            "Training: zero_grad, forward in training mode, cross-entropy with random labels, "
            "backward, AdamW; float32 weights, under autocast in other dtypes."
        )
    return [*notes, *_weights(results), *_failures(results)]


def _when(measured: Sequence[Measurement]) -> str:
    if not measured:
        return "Nothing was measured yet."
    dates = sorted(each.date for each in measured)
    loads = [each.load for each in measured if each.load is not None]
    count = len({each.round for each in measured})
    rounds = f"{count} round{'s' * (count > 1)}"
    return (
        f"Measured: {len(measured)} measurements in {rounds}, {dates[0]} to {dates[-1]}; load "
        f"average before each: {min(loads, default=0):.2f} to {max(loads, default=0):.2f}"
    )


def _weights(results: SpeedResults) -> list[str]:
    """Says whose weights were trained, and what agreement was measured on."""
    trained = list(results.facts.weights)
    fresh = [name for name in results.facts.models if name not in trained]
    words = f"fresh ones, of seed 0, for {', '.join(fresh)}" if fresh else ""
    theirs = f"those of the checkpoint for {', '.join(trained)}" if trained else ""
    notes = [f"Weights: {'; '.join(each for each in (theirs, words) if each)}."]
    judged = [row for row in results.rows if row.agreement is not None]
    if judged:
        errors = ", ".join(
            f"{row.label} {row.logit_error:.2g} ({row.setting.words})" for row in judged
        )
        warning = " With fresh weights that says little about trained ones." if fresh else ""
        notes.append(
            f"{AGREEMENT}: for how many of {_span(row.judged_on for row in judged)} images "
            f"of {results.config.calibration}, none of which it was calibrated on if there are "
            f"two or more, an entry names the class that it names in eager float32.{warning} Mean "
            f"error of the logits in units of their spread: {errors}. The first call of int8 in "
            "OpenVINO includes calibrating."
        )
    return notes


def _span(counts: Iterable[int | None]) -> str:
    known = sorted({count for count in counts if count is not None})
    return " to ".join(f"{count:,}" for count in ([known[0], known[-1]] if known[1:] else known))


def _failures(results: SpeedResults) -> list[str]:
    said: dict[str, list[str]] = {}
    for setting, rows in results.by_setting.items():
        for error in dict.fromkeys(row.error for row in rows if row.error):
            failed = [row.label for row in rows if row.error == error]
            who = "everything" if len(failed) == len(rows) > 1 else ", ".join(failed)
            said.setdefault(error, []).append(f"{who} ({setting.words})")
    notes = [f"Failed: {', '.join(who)}: {error}" for error, who in said.items()]
    return [*notes, *["What failed stays so until the command is given --retry."] * bool(said)]


# --- Images/s as bars: a panel for each setting, a bar for each entrant.

_BAR, _BASE, _INK, _FAILED = "#0b5fa5", "#8a8f98", "#2b2f36", "#b3261e"
_DPI = 150
_A_LETTER, _A_BAR = 0.075, 0.32  # inches
_ROOM_FOR_WORDS = 1.6  # of the longest bar


def save_speed_plot(path: Path, results: SpeedResults) -> None:
    """Draws the medians as bars, smallest to largest round as whiskers, and ratios beside them."""
    settings = results.by_setting
    columns = 1 if len(settings) == 1 else 2
    lines = -(-len(settings) // columns)
    labels = max(len(words(row.label)) for row in results.rows) * _A_LETTER + 0.2
    most = max(map(len, settings.values()))
    width, height = columns * (labels + 4.6), lines * (most * _A_BAR + 0.85) + 0.4
    with drawing(path, dpi=_DPI, figsize=(width, height), layout="constrained") as figure:
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, (setting, rows) in zip(panels.flat, settings.items(), strict=False):
            _draw(axes, setting, rows, most)
        for axes in panels.flat[len(settings) :]:
            axes.set_visible(False)
        figure.suptitle(
            f"Images/s (median and range of the rounds) and ratio to {results.plan.base_words}",
            fontsize=9,
            color=_INK,
        )


def _draw(axes: Any, setting: Setting, rows: list[SpeedResult], most: int) -> None:
    longest = max((row.images_per_s_max or 0.0 for row in rows), default=0.0)
    for place, row in enumerate(rows):
        speed, low, high = row.images_per_s, row.images_per_s_min, row.images_per_s_max
        if speed is None or low is None or high is None:
            said = "failed" if row.error else "not measured yet"
            axes.text(0, place, f" {said}", va="center", fontsize=8, color=_FAILED)
            continue
        color = _BASE if row.label == row.base else _BAR
        axes.barh(place, speed, height=0.62, color=color)
        axes.errorbar(
            speed, place, xerr=[[speed - low], [high - speed]], color=_INK, capsize=2.5,
            elinewidth=1,
        )  # fmt: skip
        ratio = f"   {row.ratio:.2f}x" if row.ratio else ""
        axes.annotate(
            f"{say_rate(speed)}{ratio}", (high, place), (5, 0),
            textcoords="offset points", va="center", fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [words(row.label) for row in rows], fontsize=8)
    axes.set_ylim(most - 0.4, -0.6)  # bars as thick in every panel
    axes.set_xlim(0, (longest or 1.0) * _ROOM_FOR_WORDS)
    axes.xaxis.set_visible(longest > 0)
    axes.set_title(setting.words, fontsize=9, color=_INK, loc="left")
    axes.tick_params(axis="x", labelsize=7, colors=_BASE)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
