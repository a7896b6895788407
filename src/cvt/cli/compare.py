"""`cvt compare NAMES...`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.flags import Json
from cvt.cli.output import print_json, print_table
from cvt.cli.train import Flags
from cvt.errors import UserError

if TYPE_CHECKING:
    from cvt.bench.contest import ContestConfig

_INSTEAD = {
    "model": "their names, as in cvt_nano_32 or cvt_nano_32+kv_stride=1",
    "model_args": "NAME+FIELD=VALUE, as in cvt_nano_32+kv_stride=1",
    "epochs": "--budget, as in 30epochs",
    "updates": "--budget, as in 100000images",
    "seed": "--seeds, how many there are",
    "resume": "the same command again, which goes on with its results folder",
    "force": "another --out for another comparison",
}


def compare(
    *names: str,
    budget: Annotated[
        str | None,
        Parameter(help="Training that each model gets: 30epochs, 500000images, 20minutes."),
    ] = None,
    seeds: Annotated[int, Parameter(help="Runs of each model, with seeds from 0 on.")] = 3,
    keep_runs: Annotated[
        bool, Parameter(help="Keep the run folders, with their weights, in the results folder.")
    ] = True,
    config: Annotated[
        tuple[str, ...],
        Parameter(
            name=["--config", "-c"],
            negative="",
            show_default=False,
            help="The recipe for all: a recipe's name or a YAML file; flags override it.",
        ),
    ] = (),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: Json = False,
) -> int | None:
    """Train models side by side by one recipe and budget; without --data, print their facts.

    Writes results.csv, table.md and accuracy.png into --out; the same command goes on with it.

    Parameters
    ----------
    names
        Models of `cvt models`; changed in a field, as in cvt_nano_32+kv_stride=1,pos_embed=table
        (in brackets one value a stage).
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
    return _train(names, _contest(budget, seeds, keep_runs, config, flags), json)


def _print_sheet(names: tuple[str, ...], json: bool) -> None:
    from cvt.bench.sheet import sheet_rows, sheet_text

    if json:
        for row in sheet_rows(names):
            print_json(row)
    else:
        print(sheet_text(names), end="")


def _contest(
    budget: str | None,
    seeds: int,
    keep_runs: bool,
    files: tuple[str, ...],
    flags: Flags,
) -> "ContestConfig":
    from cvt.bench.budget import read_budget
    from cvt.bench.contest import ContestConfig
    from cvt.train.config import TrainConfig
    from cvt.train.recipes import read_layers

    for name, instead in _INSTEAD.items():
        if name in flags.given:
            raise UserError(
                f"Got --{name.replace('_', '-')}, which cvt compare sets; use {instead}."
            )
    if budget is None:
        raise UserError("Got --data without --budget; give each model's training, as in 30epochs.")
    amount = read_budget(budget)
    recipe = TrainConfig.from_dict(read_layers(files, flags.layer()))
    words = f"compare-{Path(recipe.data).name}-{amount.short}"
    usual = Path("runs") / re.sub(r"[^\w.+=-]+", "_", words)
    return ContestConfig(
        recipe=recipe,
        budget=amount,
        seeds=seeds,
        out=Path(recipe.out).expanduser() if recipe.out else usual,
        keep_runs=keep_runs,
    )


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
        print(f"\n{block.title}\n")
        print_table(block.columns, block.rows)
        print("\n" + "\n".join(block.notes))
        print(f"\nWritten to {contest.out}: {RESULTS_FILE}, {TABLE_FILE}, {PLOT_FILE}")
    return int(results.has_failures)
