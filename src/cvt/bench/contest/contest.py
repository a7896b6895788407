"""Training several models under one recipe and one budget, and measuring them side by side."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cvt.bench.contest.plot import save_plot
from cvt.bench.contest.recipe import Budget, Counts, SharedRecipe, share
from cvt.bench.contest.results import Outcome, Results, Standing, notes_of, results_block
from cvt.bench.contest.runs import (
    COMPARISON,
    PACE,
    PLOT_FILE,
    TABLE_FILE,
    TRAIN,
    Ledger,
    say_outcome,
    say_progress,
)
from cvt.bench.folder import results_folder
from cvt.bench.names import Contender, check_labels
from cvt.bench.processes import Failed, Stopped, Work, work
from cvt.bench.screen import BenchScreen
from cvt.bench.speed.measure import TAKE_TURNS
from cvt.errors import UserError
from cvt.figures import if_possible
from cvt.files import atomic_write
from cvt.runtime import StopRequest, hardware, stop_requests
from cvt.training.config import Layer
from cvt.training.report import read_result
from cvt.training.run_folder import RESULT_FILE, is_held, read_metrics

# --- From a run's folder to its line in the results.

_LOOK_EVERY_S = 0.2
_LONGEST_S = 60.0


def read_outcome(
    run: Path, *, label: str, seed: int, updates: int, batch_size: int, hardware: str
) -> Outcome:
    """Reads a finished run.

    Args:
        updates: That the run was given.
        batch_size: Images of each.

    Raises:
        UserError: The run is not finished, or its files are damaged.
    """
    result, history = read_result(run), read_metrics(run)
    if result is None or not history:
        raise UserError(f"The run {run} is not finished; remove it to have it made again.")
    return Outcome(
        label=label,
        seed=seed,
        top1=result.best_top1 if result.test_top1 is None else result.test_top1,
        top5=result.test_top5,
        val_top1=result.best_top1,
        updates=updates,
        images=updates * batch_size,
        train_images_per_s=statistics.median(row.images_per_s for row in history),
        memory_mb=max(row.memory_mb for row in history),
        seconds=sum(row.seconds for row in history),
        hardware=hardware,
        bad=len(result.bad),
    )


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end."""
    return (run / RESULT_FILE).exists()


def wait_until_free(run: Path, must_stop: Callable[[], bool]) -> None:
    """Waits, a minute at most, for a process that was left alone and is about to end itself."""
    until = time.monotonic() + _LONGEST_S
    while is_held(run) and not must_stop() and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


_BATCH_ON_CPU, _BATCH = 64, 256


@dataclass(frozen=True, kw_only=True)
class ContestConfig:
    """What is the same for all contenders.

    Args:
        recipe: Data, device, batch, image size, optimiser and augmentation for everyone. Gaps are
            filled once, from data and device, never from a model; `model`, `model_args`, `epochs`,
            `updates`, `seed` and `out` are not read. Each row keeps its own stochastic depth
            unless `drop_path_rate` gives everyone the same.
        budget: Takes the place of epochs.
        seeds: How many: 0 to `seeds` - 1. A seed decides initial weights, order, augmentation and
            a cut-out validation split, the last three alike for all contenders.
        out: The results folder. One of the same contest is gone on with.
        keep_runs: Keep the run folders, with their weights, when their figures are written down.
    """

    recipe: Layer
    budget: Budget
    seeds: int
    out: Path
    keep_runs: bool = True


class ContestStopped(KeyboardInterrupt):
    """Ctrl-C: everything that was measured is written down, and the same call goes on."""


def run_contest(
    contenders: Sequence[Contender],
    config: ContestConfig,
    *,
    progress: bool = True,
    do: Work | None = None,
) -> Results:
    """Trains every contender with every seed and writes a results folder.

    Runs that are finished in the folder are not made again, the one in hand is resumed, failed
    ones are tried again. Every run has a process of its own.

    Args:
        progress: Print what happens.
        do: What does the work instead of `cvt.bench.processes.work`.

    Raises:
        UserError: A model, the data or the folder cannot be used. A run that fails is no error,
            but stands in the results.
        ContestStopped: Ctrl-C; the same call goes on.
    """
    check_labels(contenders)
    if config.seeds < 1:
        raise UserError(f"Got seeds {config.seeds}, expected 1 or more; 3 show the spread.")
    shared = share(config.recipe, contenders)
    counts = {each.label: shared.count(each) for each in contenders}
    shared.updates(config.budget)  # refuses before anything is written
    plan = _description(contenders, config, shared)
    with results_folder(config.out, COMPARISON, plan) as folder, stop_requests() as stop:
        ledger = Ledger(folder)
        todo = [(seed, each) for seed in range(config.seeds) for each in contenders]
        left = [each for each in todo if not _is_done(ledger, *each)]
        with BenchScreen(len(todo), len(todo) - len(left), progress) as screen:
            contest = _Contest(
                contenders,
                config,
                shared,
                counts,
                ledger,
                screen,
                stop,
                do or work,
                _hardware(shared),
            )
            return contest.run(left)


@dataclass(frozen=True)
class _Contest:
    """A comparison in hand."""

    contenders: Sequence[Contender]
    config: ContestConfig
    shared: SharedRecipe
    counts: Mapping[str, Counts]
    ledger: Ledger
    screen: BenchScreen
    stop: StopRequest
    do: Work
    hardware: str

    def run(self, left: Sequence[tuple[int, Contender]]) -> Results:
        """Makes the runs that are left, the inference times, table and picture."""
        if len(self.ledger.outcomes) and left:
            self.screen.say(f"Going on with {self.config.out}: {len(left)} runs are left.")
        try:
            for seed, contender in left:
                outcome = self._outcome(contender, seed)
                self.ledger.add(outcome)
                self._write()
                if outcome.is_finished and not self.config.keep_runs:
                    self.ledger.remove_run(self.ledger.run_folder(contender, seed))
                self.screen.ended(
                    f"{outcome.label}, seed {outcome.seed}",
                    say_outcome(outcome, self.shared.split),
                )
            self._measure_speed()
        except Stopped:
            self._write()
            done = sum(each.is_finished for each in self.ledger.outcomes.values())
            total = len(self.contenders) * self.config.seeds
            raise ContestStopped(
                f"Stopped after {done} of {total} runs; the same command goes on from there."
            ) from None
        results = self._write()
        with if_possible():
            save_plot(self.config.out / PLOT_FILE, results)
        return results

    def _outcome(self, contender: Contender, seed: int) -> Outcome:
        """Makes a run, or what is missing of it, and reads what came out."""
        run = self.ledger.run_folder(contender, seed)
        words = f"{contender.label}, seed {seed}"
        try:
            updates = self._updates(contender)
            wait_until_free(run, lambda: self.stop.is_set)
            if not is_finished(run):
                self.screen.now(words)
                told = self.shared.run_config(contender, seed, run, updates)
                self._work(
                    TRAIN,
                    told,
                    lambda: self.screen.look(lambda: say_progress(words, run)),
                )
            return read_outcome(
                run,
                label=contender.label,
                seed=seed,
                updates=updates,
                batch_size=self.shared.config.batch_size,
                hardware=self.hardware,
            )
        except UserError as error:
            sentence = " ".join(str(error).split())
            return Outcome(label=contender.label, seed=seed, hardware=self.hardware, error=sentence)

    def _updates(self, contender: Contender) -> int:
        """Returns the length of a contender's runs; a pace, once measured, holds for good."""
        updates = self.shared.updates(self.config.budget)
        if updates is not None:
            return updates
        paces: dict[str, Any] = self.ledger.measured.get("paces", {})
        if contender.label not in paces:
            self.screen.now(f"{contender.label}: how long an update takes")
            told = self.shared.run_config(contender, 0, Path("unused"), None)
            seconds = self._work(PACE, told)["seconds_per_update"]
            updates = self.config.budget.updates_at(seconds)
            paces = {
                **paces,
                contender.label: {"seconds_per_update": seconds, "updates": updates},
            }
            self.ledger.note("paces", paces)
        return paces[contender.label]["updates"]

    def _measure_speed(self) -> None:
        """Times inference, of all contenders or of none: they have to take turns."""
        shared, config = self.shared, self.shared.config
        on_cpu = torch.device(config.device).type == "cpu"
        asked = {
            "models": {
                each.label: shared.network(each)
                for each in self.contenders
                if any(_is_done(self.ledger, seed, each) for seed in range(self.config.seeds))
            },
            "image_size": config.image_size,
            "batch_size": _BATCH_ON_CPU if on_cpu else _BATCH,
            "device": config.device,
            "precision": config.precision,
        }
        before = self.ledger.measured.get("inference", {})
        labels = list(asked["models"])
        if not labels or (before.get("labels") == labels and not before.get("error")):
            return
        self.screen.now("images per second in inference")
        facts = {"labels": labels, "batch_size": asked["batch_size"], "hardware": self.hardware}
        try:
            facts["images_per_s"] = self._work(TAKE_TURNS, asked)
        except Failed as error:
            facts["error"] = str(error)
        self.ledger.note("inference", facts)

    def _work(
        self, task: str, plain: Mapping[str, Any], look: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        if self.stop.is_set:
            raise Stopped

        def watch() -> bool:
            look()
            return self.stop.is_set

        return self.do(task, plain, watch)

    def _write(self) -> Results:
        """Writes the table of runs and the table of contenders, and returns the results."""
        results = self._results()
        runs = [run for each in results.standings for run in each.runs]

        def more(run: Outcome) -> dict[str, Any]:
            of = results.of(run.label)
            names = ("num_params", "macs", "inference_images_per_s")
            return {"model": of.contender.model, **{name: getattr(of, name) for name in names}}

        self.ledger.folder.write(runs, more)
        with atomic_write(self.config.out / TABLE_FILE, "w") as file:
            file.write(results_block(results).to_markdown(level=1))
        return results

    def _results(self) -> Results:
        speeds = self.ledger.measured.get("inference", {}).get("images_per_s", {})
        found = self.ledger.outcomes
        standings = tuple(
            Standing(
                contender=each,
                **asdict(self.counts[each.label]),
                runs=tuple(
                    found[each.label, seed]
                    for seed in range(self.config.seeds)
                    if (each.label, seed) in found
                ),
                inference_images_per_s=speeds.get(each.label),
            )
            for each in self.contenders
        )
        facts = {
            "data": self.shared.config.data,
            "classes": self.shared.num_classes,
            "split": self.shared.split,
            "budget": str(self.config.budget),
            "seeds": self.config.seeds,
            "image_size": self.shared.config.image_size,
            "batch_size": self.shared.config.batch_size,
            "device": self.shared.config.device,
        }
        notes = notes_of(standings, facts, self.shared.config, self.ledger.measured)
        return Results(standings=standings, facts=facts, notes=notes)


def _description(
    contenders: Sequence[Contender], config: ContestConfig, shared: SharedRecipe
) -> dict[str, Any]:
    """Returns what makes a contest the one that it is, as plain data."""
    return {
        "contenders": {each.label: each.to_dict() for each in contenders},
        "budget": str(config.budget),
        "seeds": config.seeds,
        **shared.to_dict(),
    }


def _is_done(ledger: Ledger, seed: int, contender: Contender) -> bool:
    outcome = ledger.outcomes.get((contender.label, seed))
    return outcome is not None and outcome.is_finished


def _hardware(shared: SharedRecipe) -> str:
    return hardware(torch.device(shared.config.device))
