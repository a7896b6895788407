"""A bench as tables, and as the Markdown page that quotes can point to."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvt import tables as markdown
from cvt.bench.speed.forms import named_form
from cvt.bench.speed.plan import Entrant, Measurement, Plan, Setting, say_threads
from cvt.bench.tables import Block, say_rate, to_markdown
from cvt.figures import drawing, words
from cvt.training.screen import say_memory

# --- What the rounds of a bench say together.

# Of a forward pass: a backward pass multiplies by the weights, and by what came in.
_PASSES = {"inference": 1, "training": 3}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Several measurements of one quantity."""

    count: int
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range | None":
        """Returns None where there are no values."""
        if not values:
            return None
        return cls(
            count=len(values), median=statistics.median(values), min=min(values), max=max(values)
        )


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """An entrant in a setting.

    Args:
        base: Whose images/s the ratio is to.
        images_per_s: Over the rounds; None where every one failed.
        ratio: Of its images/s to those of its base in the same round, over the rounds.
        ms: Of the median call.
        memory_mb: Median over the rounds.
        prepare_s: The longest of the rounds, as later ones may find what was compiled before.
        first_call_s: Likewise, with what making the form took before it.
        gflops: Operations of the model as it is written, in 10**9 a second.
        of_peak: That as a share of the fastest large matrix product of all rounds, in the same
            dtype and threads, on the same device.
        agreement: With float32, of the first round that has it, as `Measurement` says.
        logit_error: Likewise.
        judged_on: Likewise.
        error: What went wrong, if something did.
    """

    setting: Setting
    entrant: Entrant
    base: Entrant
    images_per_s: Range | None = None
    ratio: Range | None = None
    ms: float | None = None
    memory_mb: float | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    gflops: float | None = None
    of_peak: float | None = None
    agreement: float | None = None
    logit_error: float | None = None
    judged_on: int | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, flat as a line of a table is."""
        plain = {**asdict(self.setting), **asdict(self.entrant), "base": self.base.label}
        for name, spread in (("images_per_s", self.images_per_s), ("ratio", self.ratio)):
            for part in ("median", "min", "max"):
                key = name if part == "median" else f"{name}_{part}"
                plain[key] = getattr(spread, part) if spread else None
        plain["rounds"] = self.images_per_s.count if self.images_per_s else 0
        names = ("ms", "memory_mb", "prepare_s", "first_call_s", "gflops", "of_peak", "agreement",
                 "logit_error", "judged_on", "error")  # fmt: skip
        return {**plain, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class SpeedResults:
    """A whole bench.

    Args:
        rows: In the order of settings, and in each of the entrants.
        peaks: 10**9 operations a second of large matrix products, by device, dtype and threads.
        facts: What `speed_facts.find_facts` found, with the command and how it was measured.
        base_words: What tables call the base.
    """

    rows: tuple[SpeedRow, ...]
    peaks: Mapping[tuple[str, str, int], float]
    facts: Mapping[str, Any]
    base_words: str

    @property
    def has_failures(self) -> bool:
        """Whether something went wrong somewhere."""
        return any(row.error for row in self.rows)

    def of(self, setting: Setting) -> list[SpeedRow]:
        """Returns the rows of a setting."""
        return [row for row in self.rows if row.setting == setting]

    @property
    def settings(self) -> list[Setting]:
        """The settings, in order."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            **self.facts,
            "peak_gflops": {f"{d}, {t}, {n} threads": x for (d, t, n), x in self.peaks.items()},
            "rows": [row.to_dict() for row in self.rows],
        }


def sum_up(
    plan: Plan,
    settings: Sequence[Setting],
    measured: Sequence[Measurement],
    facts: Mapping[str, Any],
) -> SpeedResults:
    """Works out medians, spreads and ratios from the single measurements."""
    peaks: dict[tuple[str, str, int], float] = {}
    for each in measured:
        if each.peak_gflops is not None:
            key = (each.device, each.dtype, each.threads)
            peaks[key] = max(peaks.get(key, 0.0), each.peak_gflops)
    rows = []
    for setting in settings:
        there = [each for each in measured if each.setting == setting]
        for entrant in plan.entrants_of(setting.task):
            macs = facts["models"][entrant.model]["macs"].get(str(setting.image_size))
            peak = peaks.get((setting.device, entrant.dtype, setting.threads))
            rows.append(_row(setting, entrant, plan.bases[entrant], there, macs, peak))
    return SpeedResults(rows=tuple(rows), peaks=peaks, facts=facts, base_words=plan.base_words)


def _row(
    setting: Setting,
    entrant: Entrant,
    base: Entrant,
    there: Sequence[Measurement],
    macs: int | None,
    peak: float | None,
) -> SpeedRow:
    own = [each for each in there if each.entrant == entrant and each.is_finished]
    errors = [each.error for each in there if each.entrant == entrant and each.error]
    rates, theirs = _rates(there, entrant), _rates(there, base)
    speed = Range.of(list(rates.values()))
    gflops = speed.median * 2 * macs * _PASSES[setting.task] / 1e9 if speed and macs else None
    prepared = [each.prepare_s or 0.0 for each in own]
    firsts = [(each.first_call_s or 0.0) + (each.prepare_s or 0.0) for each in own]
    memory = [each.memory_mb for each in own if each.memory_mb is not None]
    judged = next((each for each in own if each.agreement is not None), None)
    return SpeedRow(
        setting=setting,
        entrant=entrant,
        base=base,
        images_per_s=speed,
        ratio=Range.of([rates[i] / theirs[i] for i in rates if i in theirs]),
        ms=1000 * setting.batch_size / speed.median if speed else None,
        memory_mb=statistics.median(memory) if memory else None,
        prepare_s=max(prepared, default=None),
        first_call_s=max(firsts, default=None),
        gflops=gflops,
        of_peak=gflops / peak if gflops and peak else None,
        agreement=judged.agreement if judged else None,
        logit_error=judged.logit_error if judged else None,
        judged_on=judged.judged_on if judged else None,
        error=errors[0] if errors else "",
    )


def _rates(there: Sequence[Measurement], entrant: Entrant) -> dict[int, float]:
    """Images/s by round."""
    return {
        each.round: each.images_per_s
        for each in there
        if each.entrant == entrant and each.images_per_s is not None
    }


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


# --- Images a second as a picture: a panel for each setting, a bar for each entrant.

_BAR, _BASE, _INK, _FAILED = "#0b5fa5", "#8a8f98", "#2b2f36", "#b3261e"
_DPI = 150
_A_LETTER, _A_BAR = 0.075, 0.32  # inches
_ROOM_FOR_WORDS = 1.6  # of the longest bar


def save_speed_plot(path: Path, results: SpeedResults) -> None:
    """Draws the medians as bars, smallest to largest round as whiskers, and ratios beside them.

    Raises:
        UserError: The file cannot be written.
    """
    settings = results.settings
    columns = 1 if len(settings) == 1 else 2
    lines = -(-len(settings) // columns)
    labels = max(len(words(row.entrant.label)) for row in results.rows) * _A_LETTER + 0.2
    most = max(len(results.of(setting)) for setting in settings)
    width, height = columns * (labels + 4.6), lines * (most * _A_BAR + 0.85) + 0.4
    with drawing(path, dpi=_DPI, figsize=(width, height), layout="constrained") as figure:
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, setting in zip(panels.flat, settings, strict=False):
            _draw(axes, setting, results.of(setting), most)
        for axes in panels.flat[len(settings) :]:
            axes.set_visible(False)
        figure.suptitle(
            f"Images/s (median and range of the rounds) and ratio to {results.base_words}",
            fontsize=9,
            color=_INK,
        )


def _draw(axes: Any, setting: Setting, rows: list[SpeedRow], most: int) -> None:
    longest = max((row.images_per_s.max for row in rows if row.images_per_s), default=0.0)
    for place, row in enumerate(rows):
        speed = row.images_per_s
        if speed is None:
            said = "failed" if row.error else "not measured yet"
            axes.text(0, place, f" {said}", va="center", fontsize=8, color=_FAILED)
            continue
        color = _BASE if row.entrant == row.base else _BAR
        axes.barh(place, speed.median, height=0.62, color=color)
        below, above = speed.median - speed.min, speed.max - speed.median
        axes.errorbar(
            speed.median, place, xerr=[[below], [above]], color=_INK, capsize=2.5, elinewidth=1
        )
        ratio = f"   {row.ratio.median:.2f}x" if row.ratio else ""
        axes.annotate(
            f"{say_rate(speed.median)}{ratio}", (speed.max, place), (5, 0),
            textcoords="offset points", va="center", fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [words(row.entrant.label) for row in rows], fontsize=8)
    axes.set_ylim(most - 0.4, -0.6)  # bars as thick in every panel
    axes.set_xlim(0, (longest or 1.0) * _ROOM_FOR_WORDS)
    axes.xaxis.set_visible(longest > 0)
    axes.set_title(setting.words, fontsize=9, color=_INK, loc="left")
    axes.tick_params(axis="x", labelsize=7, colors=_BASE)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
