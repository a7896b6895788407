"""`cvt compare NAMES...`."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.contest_flags import Budget, KeepRuns, Recipe, Seeds, contest_config
from cvt.cli.flags import JsonLines
from cvt.cli.output import print_json, print_table, say, say_lines
from cvt.cli.train import Flags
from cvt.errors import UserError

if TYPE_CHECKING:
    from cvt.bench.contest import ContestConfig

_INSTEAD = {
    "model": "their names, as in cvt_nano_32 or cvt_nano_32+kv_stride=1",
    "model_args": "NAME+FIELD=VALUE, as in cvt_nano_32+kv_stride=1",
}


def compare(
    *names: Annotated[
        str,
        Parameter(
            help="Models of `cvt models`; changed in a field, as in cvt_nano_32+kv_stride=1,"
            "pos_embed=table (in brackets one value a stage)."
        ),
    ],
    budget: Budget = None,
    seeds: Seeds = 3,
    keep_runs: KeepRuns = True,
    config: Recipe = (),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: JsonLines = False,
) -> int | None:
    """Train models side by side by one recipe and budget; without --data, print their facts.

    Writes results.csv, table.md and accuracy.png into --out; the same command goes on with it.
    """
    if not names:
        raise UserError("Got no model to compare; name some, `cvt models` lists them all.")
    if "data" not in flags.given:
        if budget is not None or config or flags.given:
            raise UserError(
                "Got what training needs, but no --data; name a data set to train the models on, "
                "or leave the other flags out to print their facts."
            )
        return _print_sheet(names, json)
    contest = contest_config(
        ("compare",),
        config,
        flags,
        budget=budget,
        seeds=seeds,
        keep_runs=keep_runs,
        instead=_INSTEAD,
    )
    return _train(names, contest, json)


def _print_sheet(names: tuple[str, ...], json: bool) -> None:
    from cvt.bench.sheet import sheet_rows, sheet_text

    if json:
        for row in sheet_rows(names):
            print_json(row)
    else:
        say_lines(sheet_text(names))


def _train(names: tuple[str, ...], contest: "ContestConfig", json: bool) -> int:
    from cvt.bench.contender import read_contender
    from cvt.bench.contest import run_contest
    from cvt.bench.ledger import PLOT_FILE, RESULTS_FILE, TABLE_FILE
    from cvt.bench.table import results_block

    results = run_contest([read_contender(name) for name in names], contest, progress=not json)
    if json:
        print_json(results.to_dict())
    else:
        block = results_block(results)
        say()
        say(block.title)
        say()
        print_table(block.columns, block.rows)
        say()
        for note in block.notes:
            say_lines(note)
        say()
        say(f"Written to {contest.out}: {RESULTS_FILE}, {TABLE_FILE}, {PLOT_FILE}")
    return int(results.has_failures)
