"""What `cvt compare` and `cvt ablate` are told alike: one recipe, budget and folder for all."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.train import Flags
from cvt.errors import UserError
from cvt.files import expanded

if TYPE_CHECKING:
    from cvt.bench.contest import ContestConfig

Budget = Annotated[
    str | None,
    Parameter(help="Training that each one gets: 30epochs, 500000images, 20minutes."),
]
Seeds = Annotated[int, Parameter(help="Runs of each one, with seeds from 0 on.")]
KeepRuns = Annotated[
    bool, Parameter(help="Keep the run folders, with their weights, in the results folder.")
]
Recipe = Annotated[
    tuple[str, ...],
    Parameter(
        name=["--config", "-c"],
        negative="",
        show_default=False,
        help="The recipe for all: a recipe's name or a YAML file; flags override it.",
    ),
]

_INSTEAD = {
    "epochs": "--budget, as in 30epochs",
    "updates": "--budget, as in 100000images",
    "seed": "--seeds, how many there are",
    "resume": "the same command again, which goes on with its results folder",
    "force": "another --out for another comparison",
}


def contest_config(
    words: tuple[str, ...],
    files: tuple[str, ...],
    flags: Flags,
    *,
    budget: str | None,
    seeds: int,
    keep_runs: bool,
    instead: Mapping[str, str],
) -> "ContestConfig":
    """Returns what the flags say.

    Args:
        words: The verb, and what else the usual results folder is named after besides data and
            budget.
        instead: What to say in place of the flags that name a model.

    Raises:
        UserError: A flag that each run sets for itself, no budget or seed, or a wrong value.
    """
    from cvt.bench.budget import read_budget
    from cvt.bench.contest import ContestConfig
    from cvt.train.config import TrainConfig
    from cvt.train.recipes import read_layers

    verb, *others = words
    for name, better in {**instead, **_INSTEAD}.items():
        if name in flags.given:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"Got {flag}, which cvt {verb} sets; use {better}.")
    if budget is None:
        raise UserError(
            "Got --data without --budget; give the training that each one gets, as in 30epochs."
        )
    if seeds < 1:
        raise UserError(f"Got --seeds {seeds}, expected 1 or more; 3 show the spread.")
    amount = read_budget(budget)
    recipe = TrainConfig.from_dict(read_layers(files, flags.layer()))
    usual = "-".join((verb, Path(recipe.data).name, *others, amount.short))
    out = recipe.out or Path("runs") / re.sub(r"[^\w.+=-]+", "_", usual)
    return ContestConfig(
        recipe=recipe,
        budget=amount,
        seeds=seeds,
        out=expanded(out),
        keep_runs=keep_runs,
    )
