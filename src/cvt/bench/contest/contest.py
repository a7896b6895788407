"""Training several models under one recipe and one budget, and measuring them side by side."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cvt.bench.contest.plan import ContestConfig, ContestPlan, make_plan
from cvt.bench.contest.plot import save_contest
from cvt.bench.contest.results import (
    Allowance,
    ContestResults,
    Inference,
    Measured,
    RunResult,
    sum_up,
)
from cvt.bench.contest.runs import (
    PACE,
    TRAIN,
    read_run,
    say_progress,
    say_result,
    wait_until_free,
)
from cvt.bench.folder import Contents, ResultsFolder, results_folder
from cvt.bench.names import Contender
from cvt.bench.processes import Failed, Stopped, Work, work
from cvt.bench.screen import BenchScreen
from cvt.errors import UserError
from cvt.figures import if_possible
from cvt.files import atomic_write
from cvt.plain import from_plain, json_text, read_json_file, to_plain
from cvt.runtime import hardware, stop_requests
from cvt.training.run_folder import RESULT_FILE

RESULTS_FILE = "results.csv"
TABLE_FILE = "table.md"
PLOT_FILE = "accuracy.png"

# A task in which networks take turns in inference.
TAKE_TURNS = "cvt.bench.speed.measure:take_turns"
_BATCH_ON_CPU, _BATCH = 64, 256

Ask = Callable[..., Any]


class ContestStopped(KeyboardInterrupt):
    """Ctrl-C: everything that was measured is written down, and the same call goes on."""


def run_contest(
    contenders: Sequence[Contender],
    config: ContestConfig,
    *,
    progress: bool = True,
    do: Work | None = None,
    draw: Callable[[Path, ContestResults], None] = save_contest,
) -> ContestResults:
    """Trains every contender with every seed and writes a results folder.

    Runs that are finished in the folder are not made again, the one in hand is resumed, failed
    ones are tried again. Every run has a process of its own; one that fails is no error, but
    stands in the results.

    Args:
        progress: Print what happens.
        do: What does the work instead of `cvt.bench.processes.work`.
        draw: What draws the image.
    """
    plan, do = make_plan(contenders, config), do or work
    with results_folder(config.out, COMPARISON, plan.to_dict()) as folder, stop_requests() as stop:

        def ask(
            task: str, plain: Mapping[str, Any], look: Callable[[], None] = lambda: None
        ) -> Any:
            if stop.is_set:
                raise Stopped

            def must_stop() -> bool:
                look()
                return stop.is_set

            return do(task, plain, must_stop)

        ledger = Ledger(folder, plan)
        todo = [(seed, each) for seed in range(plan.seeds) for each in plan.contenders]
        left = [(seed, each) for seed, each in todo if not ledger.has(each, seed)]
        with BenchScreen(len(todo), len(todo) - len(left), progress) as screen:
            if folder.rows and left:
                screen.say(f"Going on with {config.out}: {len(left)} runs are left.")
            try:
                for seed, contender in left:
                    run = ledger.run_folder(contender, seed)
                    wait_until_free(run, lambda: stop.is_set)
                    result = _run(run, contender, seed, ledger, ask, screen)
                    ledger.add(result)
                    if result.is_finished and not config.keep_runs:
                        shutil.rmtree(run, ignore_errors=True)
                    screen.ended(f"{contender.label}, seed {seed}", say_result(result, plan.split))
                _time_inference(ledger, ask, screen)
            except Stopped:
                ledger.write()
                done = sum(ledger.has(each, seed) for seed, each in todo)
                raise ContestStopped(
                    f"Stopped after {done} of {len(todo)} runs; the same command goes on from "
                    "there."
                ) from None
        results = ledger.write()
        with if_possible():
            draw(config.out / PLOT_FILE, results)
        return results


def _run(
    run: Path, contender: Contender, seed: int, ledger: "Ledger", ask: Ask, screen: BenchScreen
) -> RunResult:
    """Makes a run, or what is missing of it, and reads what came out."""
    plan, words = ledger.plan, f"{contender.label}, seed {seed}"
    machine = hardware(torch.device(plan.config.device))
    try:
        updates = plan.updates or _pace(contender, ledger, ask, screen).updates
        if not (run / RESULT_FILE).exists():
            screen.now(words)
            told = plan.run_config(contender, seed, run, updates)
            ask(TRAIN, told, lambda: screen.look(lambda: words + say_progress(run)))
        return read_run(
            run,
            label=contender.label,
            seed=seed,
            updates=updates,
            batch_size=plan.config.batch_size,
            hardware=machine,
        )
    except UserError as error:
        sentence = " ".join(str(error).split())
        return RunResult(label=contender.label, seed=seed, hardware=machine, error=sentence)


def _pace(contender: Contender, ledger: "Ledger", ask: Ask, screen: BenchScreen) -> Allowance:
    """Measures how quickly a contender learns; once measured, it holds for good."""
    paces = ledger.measured.paces
    if contender.label not in paces:
        screen.now(f"{contender.label}: how long an update takes")
        seconds = ask(PACE, ledger.plan.run_config(contender, 0, Path("unused"), None))
        pace = Allowance(seconds, ledger.plan.budget.updates_at(seconds))
        ledger.note(paces={**paces, contender.label: pace})
    return ledger.measured.paces[contender.label]


def _time_inference(ledger: "Ledger", ask: Ask, screen: BenchScreen) -> None:
    """Times inference, of all contenders or of none: they have to take turns."""
    plan, config, before = ledger.plan, ledger.plan.config, ledger.measured.inference
    device = torch.device(config.device)
    trained = [
        each for each in plan.contenders if any(ledger.has(each, n) for n in range(plan.seeds))
    ]
    labels = [each.label for each in trained]
    if not labels or (before is not None and before.labels == labels and not before.error):
        return
    screen.now("images per second in inference")
    asked = {
        "models": {each.label: plan.network(each) for each in trained},
        "image_size": config.image_size,
        "batch_size": _BATCH_ON_CPU if device.type == "cpu" else _BATCH,
        "device": config.device,
        "precision": config.precision,
    }
    timed = Inference(labels=labels, batch_size=asked["batch_size"], hardware=hardware(device))
    try:
        timed = replace(timed, images_per_s=ask(TAKE_TURNS, asked))
    except Failed as error:
        timed = replace(timed, error=str(error))
    ledger.note(inference=timed)


# --- What the folder holds.


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Says the first thing in which a contest is another one; more contenders or seeds are not."""
    contenders, seeds = stored.get("contenders"), stored.get("seeds", 0)
    if not isinstance(contenders, dict) or not isinstance(seeds, int):
        raise ValueError
    for label, contender in contenders.items():
        if label not in now["contenders"]:
            return f"{label} takes part there, and is not named now"
        if contender != now["contenders"][label]:
            return f"{label} is {contender} there, and {now['contenders'][label]} now"
    if seeds > now["seeds"]:
        return f"it has {seeds} seeds, and now there are {now['seeds']}"
    for group in ("budget", "recipe", "data", "software"):
        theirs, ours = (_flat(group, each.get(group)) for each in (stored, now))
        for name in {**theirs, **ours}:
            if theirs.get(name) != ours.get(name):
                return f"{name} is {theirs.get(name)} there, and {ours.get(name)} now"
    return ""


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Names nested values as messages call them: `optim.lr`, `training data`."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            found |= {f"{key}.{inner}": item for inner, item in each.items()}
        else:
            found[f"{key} data" if name == "data" else key] = each
    return found


COMPARISON = Contents(
    name="comparison",
    plan_file="contest.yaml",
    table_file=RESULTS_FILE,
    row=RunResult,
    rows="a comparison's runs",
    mend="remove it to have it made anew from the run folders",
    difference=_difference,
)


class Ledger:
    """What a comparison has measured, in its folder."""

    def __init__(self, folder: ResultsFolder[RunResult], plan: ContestPlan) -> None:
        self.folder, self.plan = folder, plan
        self._file = folder.path / "measured.json"
        plain = read_json_file(self._file) if self._file.exists() else {}
        self.measured = from_plain(Measured, plain, str(self._file))

    def run_folder(self, contender: Contender, seed: int) -> Path:
        """Where a run lies while it is needed."""
        return self.folder.path / "runs" / f"{contender.folder}-seed{seed}"

    def has(self, contender: Contender, seed: int) -> bool:
        """Whether a run is there that was trained to its end."""
        key = contender.label, seed
        return any(row.key == key and row.is_finished for row in self.folder.rows)

    def note(self, **measured: Any) -> None:
        """Keeps a field of `Measured`."""
        self.measured = replace(self.measured, **measured)
        with atomic_write(self._file, "w") as file:
            file.write(json_text(to_plain(self.measured, none=False), indent=2) + "\n")

    def add(self, result: RunResult) -> None:
        """Writes a run's figures down, in place of any that it had."""
        self.folder.rows = [*(row for row in self.folder.rows if row.key != result.key), result]
        self.write()

    def write(self) -> ContestResults:
        """Writes the table of runs and the table of contenders, and returns the results."""
        results = sum_up(self.plan, self.folder.rows, self.measured)

        def more(run: RunResult) -> dict[str, Any]:
            of = results.of(run.label)
            names = ("num_params", "macs", "inference_images_per_s")
            return {"model": of.contender.model, **{name: getattr(of, name) for name in names}}

        self.folder.write([run for each in results.contenders for run in each.runs], more)
        with atomic_write(self.folder.path / TABLE_FILE, "w") as file:
            file.write(results.table.to_markdown(level=1))
        return results
