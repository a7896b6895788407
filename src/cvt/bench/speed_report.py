"""A bench as tables, and as the Markdown page that quotes can point to."""

from collections.abc import Iterable, Sequence
from typing import Any

from cvt.bench.block import Block, to_markdown
from cvt.bench.speed_case import say_threads
from cvt.bench.speed_form_names import named_form
from cvt.bench.speed_measurement import Measurement
from cvt.bench.speed_results import Range, SpeedResults, SpeedRow
from cvt.bench.speed_screen import say_rate
from cvt.train import markdown
from cvt.train.units import say_memory

_COLUMNS = ("Entry", "Images/s", "ms", "Ratio", "Memory above the model", "First call", "Of peak")
_AGREEMENT = "As float32"


def report_text(results: SpeedResults, measured: Sequence[Measurement]) -> str:
    """Returns the Markdown page: the command, hardware and dates, the tables, and their notes."""
    facts = results.facts
    where = [f"{device}: {words}" for device, words in facts["hardware"].items()]
    around = [f"{name}={value}" for name, value in facts["environment"].items()]
    software = ", ".join(f"{name} {each}" for name, each in facts["software"].items())
    lines = [
        "# Speed",
        "",
        "```",
        facts["command"],
        "```",
        "",
        f"- Hardware: {markdown.text('; '.join(where))}",
        f"- Software: {markdown.text(software)}",
        f"- Environment: {', '.join(map(markdown.code, around)) or 'nothing set'}",
        f"- {markdown.text(_when(measured))}",
        "",
        to_markdown(speed_blocks(results)),
        "## Notes",
        "",
        *(f"- {markdown.text(note)}" for note in notes_of(results)),
    ]
    return "\n".join(lines) + "\n"


def speed_blocks(results: SpeedResults) -> list[Block]:
    """Returns a table for each setting, its entrants in the order that they were named in."""
    judged = any(row.agreement is not None for row in results.rows)
    return [
        Block(
            title=setting.words[0].upper() + setting.words[1:],
            columns=(*_COLUMNS, *[_AGREEMENT] * judged),
            rows=tuple(
                (*_cells(row), *[_say_agreement(row)] * judged) for row in results.of(setting)
            ),
        )
        for setting in results.settings
    ]


def notes_of(results: SpeedResults) -> list[str]:
    """Returns the sentences that say what the figures mean, and what failed."""
    forms = dict.fromkeys(row.entrant.form for row in results.rows)
    tasks = {setting.task for setting in results.settings}
    peaks = "; ".join(
        f"{device}, {dtype}{say_threads(device, n)}: {peak:,.0f} GFLOP/s"
        for (device, dtype, n), peak in results.peaks.items()
    )
    notes = [
        *(f"{name}: {named_form(name).words}." for name in forms),
        "Images/s: the median over the rounds, in brackets the slowest and the fastest. A round "
        "measures every entry once, in a process of its own, one at a time and in a shuffled "
        f"order, by the median call of at least {results.facts['seconds']:g} s.",
        f"Ratio: to {results.base_words}, of the same round; the median over the rounds, in "
        "brackets the smallest and the largest.",
        "Memory above the model: the most that was taken in the timed calls above what was there "
        "before the first one: resident memory of the process on a CPU (a compiler's own "
        "included), tensors on a GPU; the median over the rounds.",
        "First call: from the model to its first answer, the making of the form included; the "
        "longest of the rounds, as later ones may find what was compiled before.",
        f"Of peak: two operations for each multiply-add of the model as it is written"
        f"{', times three in training,' if 'training' in tasks else ''} against the fastest large "
        f"matrix product in the same processes ({peaks or 'none measured'}); none for int8.",
    ]
    if "training" in tasks:
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


def _cells(row: SpeedRow) -> tuple[str, ...]:
    if row.images_per_s is None:
        return (row.entrant.label, "failed" if row.error else "-", *["-"] * 5)
    return (
        row.entrant.label,
        _say_range(row.images_per_s, say_rate),
        "-" if row.ms is None else say_rate(row.ms),
        _say_range(row.ratio, "{:.2f}".format),
        "-" if row.memory_mb is None else say_memory(row.memory_mb),
        "-" if row.first_call_s is None else f"{row.first_call_s:.2f} s",
        "-" if row.of_peak is None else f"{100 * row.of_peak:.0f} %",
    )


def _say_range(spread: Range | None, say: Any) -> str:
    if spread is None:
        return "-"
    if spread.count == 1:
        return say(spread.median)
    return f"{say(spread.median)} ({say(spread.min)} to {say(spread.max)})"


def _say_agreement(row: SpeedRow) -> str:
    return "-" if row.agreement is None else f"{row.agreement:.1f} %"


def _weights(results: SpeedResults) -> list[str]:
    """Says whose weights were trained, and what agreement was measured on."""
    trained = [name for name, each in results.facts["models"].items() if "weights" in each]
    fresh = [name for name in results.facts["models"] if name not in trained]
    words = f"fresh ones, of seed 0, for {', '.join(fresh)}" if fresh else ""
    theirs = f"those of the checkpoint for {', '.join(trained)}" if trained else ""
    notes = [f"Weights: {'; '.join(each for each in (theirs, words) if each)}."]
    judged = [row for row in results.rows if row.agreement is not None]
    if judged:
        counts = {row.judged_on for row in judged}
        errors = ", ".join(
            f"{row.entrant.label} {row.logit_error:.2g} ({row.setting.words})" for row in judged
        )
        warning = " With fresh weights that says little about trained ones." if fresh else ""
        notes.append(
            f"{_AGREEMENT}: for how many of {_span(counts)} pictures of "
            f"{results.facts['calibration']}, none of which it was calibrated on if there are "
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
    for setting in results.settings:
        rows = results.of(setting)
        for error in dict.fromkeys(row.error for row in rows if row.error):
            failed = [row.entrant.label for row in rows if row.error == error]
            who = "everything" if len(failed) == len(rows) > 1 else ", ".join(failed)
            said.setdefault(error, []).append(f"{who} ({setting.words})")
    notes = [f"Failed: {', '.join(who)}: {error}" for error, who in said.items()]
    return [*notes, *["What failed stays so until the command is given --retry."] * bool(said)]
