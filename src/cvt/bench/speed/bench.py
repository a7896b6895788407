"""Measuring the speed of many entries in turn, each in a fresh process, one at a time."""

import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cvt.bench.folder import ResultsFolder, results_folder, write_csv
from cvt.bench.processes import Failed, Stopped, Work, work
from cvt.bench.screen import Screen
from cvt.bench.speed.folder import BENCH, COMPILED_FOLDER, CSV_FILE, PLOT_FILE, TABLE_FILE
from cvt.bench.speed.plan import (
    BenchConfig,
    Entrant,
    Measurement,
    Plan,
    Setting,
    is_whole,
    make_plan,
    make_settings,
)
from cvt.bench.speed.report import SpeedResults, report_text, save_speed_plot, sum_up
from cvt.bench.tables import say_rate
from cvt.figures import if_possible
from cvt.files import atomic_write
from cvt.runtime import StopRequest, stop_requests
from cvt.training.screen import say_memory

FACTS, MEASURE = "cvt.bench.speed.facts:facts_asked", "cvt.bench.speed.measure:measure_asked"


class BenchStopped(KeyboardInterrupt):
    """Ctrl-C: everything that was measured is written down, and the same call goes on."""


def run_bench(
    config: BenchConfig, *, progress: bool = True, do: Work | None = None
) -> SpeedResults:
    """Measures every entrant in every setting, round after round, and writes a results folder.

    A round measures everything once: the settings in an order of its own, and in each setting its
    entrants in an order of their own, right after each other, as they are divided by each other.
    What is in the folder already is not measured again; a round that was broken off in a setting
    is, there, since its ratios want to be of one time. Who has failed in a setting is left out of
    its further rounds, and stays so until `config.retry`, which makes that setting's anew.

    Args:
        progress: Print what happens.
        do: What does the work instead of `cvt.bench.processes.work`.

    Raises:
        UserError: Something that was asked for is not there, or the folder cannot be used. A
            measurement that fails is no error, but stands in the results.
        BenchStopped: Ctrl-C; the same call goes on.
    """
    plan = make_plan(config)
    folder = config.folder
    with stop_requests() as stop:
        facts = _facts(plan, config, do or work, stop)
        settings = make_settings(config, facts)
        with results_folder(folder, BENCH, _description(plan, config, facts)) as ledger:
            if config.retry:
                ledger.drop([each for each in ledger.rows if not each.is_finished])
            todo = [
                (round_, setting, plan.entrants_of(setting.task))
                for round_ in range(1, config.repeats + 1)
                for setting in _shuffled(settings, round_)
            ]
            left = [each for each in todo if not is_whole(ledger.rows, each[1], each[2], each[0])]
            count = [sum(len(entrants) for *_, entrants in each) for each in (todo, left)]
            screen = Screen(count[0], count[0] - count[1], progress)
            with screen:
                bench = _Bench(plan, config, settings, facts, ledger, screen, stop, do or work)
                return bench.run(left)


@dataclass(frozen=True)
class _Bench:
    """A bench in hand."""

    plan: Plan
    config: BenchConfig
    settings: Sequence[Setting]
    facts: Mapping[str, Any]
    ledger: ResultsFolder[Measurement]
    screen: Screen
    stop: StopRequest
    do: Work

    def run(self, left: Sequence[tuple[int, Setting, Sequence[Entrant]]]) -> SpeedResults:
        """Makes the measurements that are left, and writes tables and picture."""
        folder = self.config.folder
        if self.ledger.rows and left:
            self.screen.say(f"Going on with {folder}.")
        try:
            for round_, setting, entrants in left:
                self._round(round_, setting, entrants)
        except Stopped:
            self._write()
            raise BenchStopped(
                f"Stopped after {self.screen.done} of {self.screen.total} measurements; the same "
                "command goes on from there."
            ) from None
        shutil.rmtree(folder / COMPILED_FOLDER, ignore_errors=True)
        return self._write()

    def _round(self, round_: int, setting: Setting, entrants: Sequence[Entrant]) -> None:
        measured = self.ledger.rows
        failed = {e.entrant for e in measured if e.setting == setting and not e.is_finished}
        self.ledger.drop(
            [e for e in measured if e.setting == setting and e.round == round_ and e.is_finished]
        )
        for entrant in _shuffled(entrants, f"{round_} {setting}"):
            if entrant in failed:
                self.screen.skipped()
            else:
                measurement = self._measure(round_, setting, entrant)
                self.ledger.add(measurement)
                self.screen.ended(f"{entrant.label}, {setting.words}", _say(measurement))

    def _measure(self, round_: int, setting: Setting, entrant: Entrant) -> Measurement:
        if self.stop.is_set:
            raise Stopped
        self.screen.now(f"round {round_}: {entrant.label}, {setting.words}")
        known: dict[str, Any] = {
            **asdict(setting),
            **asdict(entrant),
            "round": round_,
            "load": os.getloadavg()[0],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        lacking = self.facts["lacking"].get(setting.device, {}).get(entrant.dtype)
        if lacking:
            return Measurement(**known, error=lacking)
        compiled = re.sub(r"[^\w.-]+", "_", f"{entrant.label}-{setting.words}")
        told: dict[str, Any] = {
            **asdict(setting),
            **asdict(entrant),
            "seconds": self.config.seconds,
            "calibration": self.config.calibration,
            "cache": str((self.config.folder / COMPILED_FOLDER / compiled).absolute()),
        }
        try:
            return Measurement(**known, **self.do(MEASURE, told, lambda: self.stop.is_set))
        except Failed as error:
            return Measurement(**known, error=" ".join(str(error).split()))

    def _write(self) -> SpeedResults:
        folder, measured = self.config.folder, self.ledger.rows
        results = sum_up(self.plan, self.settings, measured, self.facts)
        write_csv(folder / CSV_FILE, [row.to_dict() for row in results.rows])
        with atomic_write(folder / TABLE_FILE, "w") as file:
            file.write(report_text(results, measured))
        with if_possible():
            save_speed_plot(folder / PLOT_FILE, results)
        return results


def _say(measurement: Measurement) -> str:
    if measurement.images_per_s is None:
        return f"failed: {measurement.error}"
    memory = measurement.memory_mb
    more = "" if memory is None else f", {say_memory(memory)} above the model"
    return f"{say_rate(measurement.images_per_s)} images/s{more}"


def _facts(plan: Plan, config: BenchConfig, do: Work, stop: StopRequest) -> dict[str, Any]:
    """Asks a process of its own, so that this one stays small and whatever it imports is gone."""
    try:
        found = do(FACTS, plan.questions(config), lambda: stop.is_set)
    except Stopped:
        raise BenchStopped("Stopped before the first measurement.") from None
    asked = {name: getattr(config, name) for name in ("command", "seconds", "calibration")}
    return {**asked, **found}


def _description(plan: Plan, config: BenchConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what makes a bench the one that it is, as plain data; more rounds are no other."""
    return {
        "entries": [each.label for each in plan.entrants],
        "base": plan.base_words,
        "tasks": list(config.tasks),
        "devices": facts["devices"],
        "threads": facts["threads"],
        "image sizes": list(config.image_sizes),
        "batch sizes": list(config.batch_sizes),
        "seconds": config.seconds,
        "calibration": config.calibration,
        "weights": {
            name: each["weights"] for name, each in facts["models"].items() if "weights" in each
        },
        "hardware": facts["hardware"],
        "software": facts["software"],
        "environment": facts["environment"],
    }


def _shuffled(values: Sequence[Any], seed: int | str) -> list[Any]:
    """Returns them in an order that is another one for each seed, and the same for the same."""
    values = list(values)
    random.Random(seed).shuffle(values)
    return values
