"""`cvt compare NAMES...` and `cvt ablate TABLES...`: several networks, one recipe, one budget."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cvt.cli.flags import JsonLines
from cvt.cli.output import print_json, print_table, say, say_lines, warn
from cvt.cli.train import Recipe, TrainFlags, train_flags
from cvt.errors import UserError
from cvt.files import expanded
from cvt.tables import Table

if TYPE_CHECKING:
    from cvt.bench.contest import ContestConfig
    from cvt.bench.paper import Ablation

# --- What both are told alike: one recipe, budget and folder for all.

if TYPE_CHECKING:
    Flags = TrainFlags
else:  # for what a comparison does not set itself
    Flags = train_flags(
        *("model", "model_args", "weights", "head", "fast", "epochs", "updates"),
        *("minutes", "patience", "seed", "resume", "force"),
        data="What all are trained on, as for `cvt train`; without it nothing is trained.",
        out="Results folder; by default one under runs/, named after the verb, data and budget.",
    )


@dataclass(frozen=True, kw_only=True)
class ContestFlags:
    """How much training each one gets, and by which recipe."""

    budget: Annotated[
        str | None,
        Parameter(help="Training that each one gets: 30epochs, 500000images, 20minutes."),
    ] = None
    seeds: Annotated[int, Parameter(help="Runs of each one, with seeds from 0 on.")] = 3
    keep_runs: Annotated[
        bool, Parameter(help="Keep the run folders, with their weights, in the results folder.")
    ] = True
    recipe: Recipe = ()

    def config(self, asked: dict[str, Any], *words: str) -> "ContestConfig":
        """Returns what all flags say.

        Args:
            asked: Those of training.
            words: What the usual results folder is named after besides data and budget.
        """
        from cvt.bench.contest import ContestConfig, read_budget
        from cvt.training.defaults import read_layers, said

        if self.budget is None:
            raise UserError(
                "Got --data without --budget; give the training that each one gets, as in 30epochs."
            )
        if self.seeds < 1:
            raise UserError(f"Got --seeds {self.seeds}, expected 1 or more; 3 show the spread.")
        budget, recipe = (
            read_budget(self.budget),
            read_layers(self.recipe, said(asked, "the flags")),
        )
        usual = "-".join((words[0], Path(recipe["data"]).name, *words[1:], budget.short))
        out = recipe.get("out") or Path("runs") / re.sub(r"[^\w.+=-]+", "_", usual)
        return ContestConfig(
            recipe=recipe,
            budget=budget,
            seeds=self.seeds,
            out=expanded(out),
            keep_runs=self.keep_runs,
        )


def _print(tables: Sequence[Table], plain: Sequence[Any], json: bool) -> None:
    if json:
        for each in plain:
            print_json(each)
        return
    for table in tables:
        print_table(table)
        say()


# --- `cvt compare NAMES...`.


def compare(
    *names: Annotated[
        str,
        Parameter(
            help="Models of `cvt models` or timm/NAME; changed in a field, as in "
            "cvt_nano_32+kv_stride=1,pos_embed=table (in brackets one value a stage)."
        ),
    ],
    alike: Annotated[ContestFlags, Parameter(name="*")] = ContestFlags(),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: JsonLines = False,
) -> int:
    """Train models side by side, or print what they count.

    With --data, all are trained by one recipe and budget, which writes results.csv, table.md and
    accuracy.png into --out; the same command goes on with it.
    """
    from cvt.bench.contest import PLOT_FILE, RESULTS_FILE, TABLE_FILE, run_contest
    from cvt.bench.names import read_contender
    from cvt.bench.paper import sheet

    asked = flags.layer()
    if not names:
        raise UserError("Got no model to compare; name some, `cvt models` lists them all.")
    if "data" not in asked:
        if alike.budget is not None or alike.recipe or asked:
            raise UserError(
                "Got what training needs, but no --data; name a data set to train the models on, "
                "or leave the other flags out to print their facts."
            )
        _print(*sheet(names), json)
        return 0
    config = alike.config(asked, "compare")
    results = run_contest([read_contender(name) for name in names], config, progress=not json)
    if not json:
        say()
    _print([results.table], [results], json)
    if not json:
        say(f"Written to {config.out}: {RESULTS_FILE}, {TABLE_FILE}, {PLOT_FILE}")
    return int(results.has_failures)


# --- `cvt ablate TABLES...`.


def ablate(
    *tables: Annotated[
        str,
        Parameter(
            help="1 (axes), 2 (architecture), 3 (ImageNet), 5 (position), 6 (token embedding), 7 "
            "(stride of keys and values), 8 (projection by stage); with --data one or several of "
            "5 to 8."
        ),
    ],
    base: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="What is changed in Tables 5 to 8: a row, a row with changes as in "
            "cvt_nano_32+kv_stride=1, a run's folder or a YAML config; may be given several times. "
            "By default cvt_13, or cvt_nano_32 to be trained.",
        ),
    ] = (),
    alike: Annotated[ContestFlags, Parameter(name="*")] = ContestFlags(),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: JsonLines = False,
) -> int:
    """Make the paper's tables again: by counting, or by training.

    Counts stand beside the printed ones; with --data the variants are trained.
    """
    numbers, asked = _numbers(tables), flags.layer()
    if "data" in asked:
        bases = base or ("cvt_nano_32",)
        if min(numbers) < 5:
            raise UserError(
                f"Got table {min(numbers)} with --data, and there is nothing to train in it; take "
                "tables of 5 to 8, or leave --data out."
            )
        return _train(numbers, bases, alike.config(asked, "ablate", *bases), json)
    if alike.budget is not None or alike.recipe or asked:
        given = "recipe" if alike.recipe else next(iter(asked), "")
        given = given if alike.budget is None else "budget"
        raise UserError(
            f"Got --{given.replace('_', '-')} without --data, so that nothing is trained; name a "
            "data set to train the variants on."
        )
    return _count(numbers, base, json)


def _numbers(tables: Sequence[str]) -> list[int]:
    known = ("1", "2", "3", "5", "6", "7", "8")
    expected = f"expected one or several of {', '.join(known)}"
    if not tables:
        raise UserError(f"Got no table, {expected}.")
    if "4" in tables:
        raise UserError(
            "Table 4 transfers weights of ImageNet-22k, which only its authors could train; "
            f"{expected.replace('one or several of ', '')}."
        )
    for text in tables:
        if text not in known:
            raise UserError(f"Got table {text!r}, {expected}.")
    return [int(text) for text in dict.fromkeys(tables)]


def _count(numbers: Sequence[int], bases: Sequence[str], json: bool) -> int:
    from cvt.bench.paper import count, table_1, table_2, table_3

    printed = {1: lambda: table_1(bases), 2: table_2, 3: table_3}
    ablations, skipped = _ablations([each for each in numbers if each not in printed], bases)
    for number in numbers:
        if number in printed:
            _print(*printed[number](), json)
        for ablation in ablations:
            if ablation.table == number:
                counted = count(ablation)
                _print([counted.table], counted.variants, json)
    return _tell(skipped)


def _train(numbers: list[int], bases: Sequence[str], config: "ContestConfig", json: bool) -> int:
    from cvt.bench.contest import run_contest
    from cvt.bench.paper import NAME, contenders_of, judge, legend, write_report

    ablations, skipped = _ablations(numbers, bases)
    results = run_contest(contenders_of(ablations), config, progress=not json)
    judged = [judge(ablation, results) for ablation in ablations]
    write_report(config.out, judged, results)
    for each in judged:
        _print([each.table], each.variants, json)
    if not json:
        for note in legend(results):
            say_lines(note)
        say()
        say(f"Tables and plot: {config.out}/{NAME}.{{md,csv,png}}")
    return max(_tell(skipped), int(results.has_failures))


def _ablations(numbers: list[int], names: Sequence[str]) -> "tuple[list[Ablation], list[str]]":
    """Makes each table from each base that can express it, and a sentence for each that cannot."""
    from cvt.bench.names import read_base
    from cvt.bench.paper import make_ablation, usual_bases

    made, skipped = [], []
    for number in numbers:
        for base in [read_base(name) for name in dict.fromkeys(names or usual_bases(number))]:
            try:
                made.append(make_ablation(number, base))
            except UserError as error:
                skipped.append(str(error))
    if numbers and not made:
        raise UserError(skipped[0])
    return made, skipped


def _tell(skipped: Sequence[str]) -> int:
    for sentence in skipped:
        warn(f"skipped: {sentence}")
    return int(bool(skipped))
