"""Measuring the speed of many entries in turn, each in a fresh process, one at a time."""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cvt.bench.folder import Contents, ResultsFolder, results_folder
from cvt.bench.processes import Failed, Stopped, Work, work
from cvt.bench.screen import BenchScreen
from cvt.bench.speed.plan import BenchConfig, Entrant, Plan, Setting, make_plan, make_settings
from cvt.bench.speed.report import report_text, save_speed_plot
from cvt.bench.speed.results import BenchFacts, Measurement, SpeedResults, say_rate
from cvt.figures import if_possible
from cvt.files import atomic_write
from cvt.plain import from_plain
from cvt.runtime import stop_requests
from cvt.tables import write_csv
from cvt.training.screen import say_memory

MEASURED_FILE = "measurements.csv"
CSV_FILE = "table.csv"
TABLE_FILE = "table.md"
PLOT_FILE = "speed.png"
FILES = (MEASURED_FILE, CSV_FILE, TABLE_FILE, PLOT_FILE)
COMPILED_FOLDER = ".compiled"

# Tasks for processes of their own, so that this one stays small.
FACTS, MEASURE = "cvt.bench.speed.facts:facts_asked", "cvt.bench.speed.measure:measure_asked"

T = TypeVar("T")
Ask = Callable[[str, Mapping[str, Any]], Any]


class BenchStopped(KeyboardInterrupt):
    """Ctrl-C: everything that was measured is written down, and the same call goes on."""


def run_bench(
    config: BenchConfig,
    *,
    progress: bool = True,
    do: Work | None = None,
    draw: Callable[[Path, SpeedResults], None] = save_speed_plot,
) -> SpeedResults:
    """Measures every entrant in every setting, round after round, and writes a results folder.

    A round measures everything once: the settings in an order of its own, and in each setting its
    entrants in an order of their own, right after each other, as they are divided by each other.
    What is in the folder already is not measured again; a round that was broken off in a setting
    is, there, since its ratios want to be of one time. Who has failed in a setting is left out of
    its further rounds, and stays so until `config.retry`, which makes that setting's anew. A
    measurement that fails is no error, but stands in the results.

    Args:
        do: What does the work instead of `cvt.bench.processes.work`.
    """
    plan, do = make_plan(config), do or work
    with stop_requests() as stop:

        def ask(task: str, plain: Mapping[str, Any]) -> Any:
            if stop.is_set:
                raise Stopped
            return do(task, plain, lambda: stop.is_set)

        try:
            answer = ask(FACTS, _questions(config, plan))
        except Stopped:
            raise BenchStopped("Stopped before the first measurement.") from None
        facts = from_plain(BenchFacts, answer, "the machine's facts")
        settings = make_settings(config, facts.devices, facts.threads)
        with results_folder(config.folder, BENCH, _pinned(config, plan, facts)) as folder:
            if config.retry:
                folder.drop([each for each in folder.rows if not each.is_finished])
            rounds = [
                (round_, setting, plan.entrants_of(setting.task))
                for round_ in range(1, config.repeats + 1)
                for setting in _shuffled(settings, round_)
            ]
            left = [each for each in rounds if not _is_whole(folder.rows, *each)]
            total, missing = (sum(len(each[2]) for each in those) for those in (rounds, left))
            with BenchScreen(total, total - missing, progress) as screen:
                if folder.rows and left:
                    screen.say(f"Going on with {config.folder}.")
                is_stopped = False
                try:
                    for known, is_left_out in _due(folder, left):
                        if is_left_out:
                            screen.skipped()
                            continue
                        screen.now(f"round {known.round}: {known.label}, {known.words}")
                        measured = _measured(known, config, facts, ask)
                        folder.add(measured)
                        screen.ended(f"{known.label}, {known.words}", _say(measured))
                except Stopped:
                    is_stopped = True
                results = SpeedResults(
                    config=config, plan=plan, settings=settings, facts=facts, measured=folder.rows
                )
                _write(results, draw)
                if is_stopped:
                    raise BenchStopped(
                        f"Stopped after {screen.done} of {total} measurements; the same command "
                        "goes on from there."
                    )
        shutil.rmtree(config.folder / COMPILED_FOLDER, ignore_errors=True)
        return results


def _is_whole(
    rows: Iterable[Measurement], round_: int, setting: Setting, entrants: Iterable[Entrant]
) -> bool:
    """Whether a round in a setting has everyone, but for those that have failed there already."""
    there = [each for each in rows if each.setting == setting]
    made = {each.entrant for each in there if each.round == round_ or not each.is_finished}
    return made.issuperset(entrants)


def _due(
    folder: ResultsFolder[Measurement], rounds: Iterable[tuple[int, Setting, Sequence[Entrant]]]
) -> Iterator[tuple[Measurement, bool]]:
    """Goes through what is to be measured, and says whether it is left out, having failed before.

    What there is of a round in a setting is forgotten when its turn comes.
    """
    for round_, setting, entrants in rounds:
        there = [each for each in folder.rows if each.setting == setting]
        failed = {each.entrant for each in there if not each.is_finished}
        folder.drop([each for each in there if each.round == round_ and each.is_finished])
        for entrant in _shuffled(entrants, f"{round_} {setting}"):
            known = Measurement(
                **asdict(setting),
                **asdict(entrant),
                round=round_,
                load=os.getloadavg()[0],
                date=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            yield known, entrant in failed


def _measured(known: Measurement, config: BenchConfig, facts: BenchFacts, ask: Ask) -> Measurement:
    if lacking := facts.lacking.get(known.device, {}).get(known.dtype):
        return replace(known, error=lacking)
    compiled = re.sub(r"[^\w.-]+", "_", f"{known.label}-{known.words}")
    told = {
        "measurement": asdict(known),
        "seconds": config.seconds,
        "calibration": config.calibration,
        "cache": str((config.folder / COMPILED_FOLDER / compiled).absolute()),
    }
    try:
        return from_plain(Measurement, ask(MEASURE, told), "a measurement")
    except Failed as error:
        return replace(known, error=" ".join(str(error).split()))


def _say(measured: Measurement) -> str:
    if measured.images_per_s is None:
        return f"failed: {measured.error}"
    memory = measured.memory_mb
    more = "" if memory is None else f", {say_memory(memory)} above the model"
    return f"{say_rate(measured.images_per_s)} images/s{more}"


def _write(results: SpeedResults, draw: Callable[[Path, SpeedResults], None]) -> None:
    folder = results.config.folder
    rows = [asdict(row) for row in results.rows]
    write_csv(folder / CSV_FILE, list(rows[0]), rows)
    with atomic_write(folder / TABLE_FILE, "w") as file:
        file.write(report_text(results))
    with if_possible():
        draw(folder / PLOT_FILE, results)


def _shuffled(values: Iterable[T], seed: int | str) -> list[T]:
    """Returns them in an order that is another one for each seed, and the same for the same."""
    values = list(values)
    random.Random(seed).shuffle(values)
    return values


def _questions(config: BenchConfig, plan: Plan) -> dict[str, Any]:
    """Returns what `find_facts` is asked."""
    return {
        "models": plan.all_of("model"),
        "forms": plan.all_of("form"),
        "image_sizes": list(config.image_sizes),
        "dtypes": plan.all_of("dtype"),
        "devices": list(config.devices),
        "threads": list(config.threads) if config.threads else None,
        "calibration": config.calibration,
    }


def _pinned(config: BenchConfig, plan: Plan, facts: BenchFacts) -> dict[str, Any]:
    """Returns what makes a bench the one that it is, as plain data; more rounds are no other."""
    return {
        "entries": [each.label for each in plan.entrants],
        "base": plan.base_words,
        "tasks": list(config.tasks),
        "devices": facts.devices,
        "threads": facts.threads,
        "image sizes": list(config.image_sizes),
        "batch sizes": list(config.batch_sizes),
        "seconds": config.seconds,
        "calibration": config.calibration,
        "weights": facts.weights,
        "hardware": facts.hardware,
        "software": facts.software,
        "environment": facts.environment,
    }


# A package that was installed, or a GPU that was found, since the first measurement.
_MAY_GROW = ("software", "hardware")


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names a part that is another one; what was added to the machine changes none."""
    for name in {**stored, **now}:
        one, other = stored.get(name), now.get(name)
        if name in _MAY_GROW and isinstance(one, Mapping) and isinstance(other, Mapping):
            one, other = dict(one), {key: other.get(key) for key in one}
        if one != other:
            return f"{name} is {stored.get(name)} there, and {now.get(name)} now"
    return ""


BENCH = Contents(
    name="bench",
    plan_file="bench.yaml",
    table_file=MEASURED_FILE,
    row=Measurement,
    rows="measurements",
    mend="give another --out",
    difference=_difference,
)
