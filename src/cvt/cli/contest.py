"""`cvt compare NAMES...` and `cvt ablate TABLES...`: several networks, one recipe, one budget."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cvt.cli.flags import JsonLines
from cvt.cli.output import print_json, print_table, say, say_lines, warn
from cvt.cli.train import Recipe, TrainFlags, train_flags
from cvt.errors import UserError
from cvt.files import expanded

if TYPE_CHECKING:
    from cvt.bench.contest.contest import ContestConfig
    from cvt.bench.paper.ablation import Ablation
    from cvt.bench.tables import Block

# --- What `cvt compare` and `cvt ablate` are told alike: one recipe, budget and folder for all.

Budget = Annotated[
    str | None,
    Parameter(help="Training that each one gets: 30epochs, 500000images, 20minutes."),
]
Seeds = Annotated[int, Parameter(help="Runs of each one, with seeds from 0 on.")]
KeepRuns = Annotated[
    bool, Parameter(help="Keep the run folders, with their weights, in the results folder.")
]

if TYPE_CHECKING:
    Flags = TrainFlags
else:  # for what a comparison does not set itself
    Flags = train_flags(
        *("model", "model_args", "weights", "epochs", "updates", "seed", "resume", "force")
    )


def contest_config(
    words: tuple[str, ...],
    files: tuple[str, ...],
    flags: Flags,
    *,
    budget: str | None,
    seeds: int,
    keep_runs: bool,
) -> "ContestConfig":
    """Returns what the flags say.

    Args:
        words: The verb, and what else the usual results folder is named after besides data and
            budget.
    """
    from cvt.bench.contest.contest import ContestConfig
    from cvt.bench.contest.recipe import read_budget
    from cvt.training.defaults import read_layers, said

    if budget is None:
        raise UserError(
            "Got --data without --budget; give the training that each one gets, as in 30epochs."
        )
    if seeds < 1:
        raise UserError(f"Got --seeds {seeds}, expected 1 or more; 3 show the spread.")
    amount = read_budget(budget)
    verb, *others = words
    recipe = read_layers(files, said(flags.layer(), "the flags"))
    usual = "-".join((verb, Path(recipe["data"]).name, *others, amount.short))
    out = recipe.get("out") or Path("runs") / re.sub(r"[^\w.+=-]+", "_", usual)
    return ContestConfig(
        recipe=recipe,
        budget=amount,
        seeds=seeds,
        out=expanded(out),
        keep_runs=keep_runs,
    )


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
    recipe: Recipe = (),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: JsonLines = False,
) -> int | None:
    """Train models side by side, or print what they count.

    With --data, all are trained by one recipe and budget, which writes results.csv, table.md and
    accuracy.png into --out; the same command goes on with it.
    """
    if not names:
        raise UserError("Got no model to compare; name some, `cvt models` lists them all.")
    if "data" not in flags.layer():
        if budget is not None or recipe or flags.layer():
            raise UserError(
                "Got what training needs, but no --data; name a data set to train the models on, "
                "or leave the other flags out to print their facts."
            )
        return _print_sheet(names, json)
    contest = contest_config(
        ("compare",),
        recipe,
        flags,
        budget=budget,
        seeds=seeds,
        keep_runs=keep_runs,
    )
    return _train(names, contest, json)


def _print_sheet(names: tuple[str, ...], json: bool) -> None:
    from cvt.bench.paper.sheets import sheet_rows, sheet_text

    if json:
        for row in sheet_rows(names):
            print_json(row)
    else:
        say_lines(sheet_text(names))


def _train(names: tuple[str, ...], contest: "ContestConfig", json: bool) -> int:
    from cvt.bench.contest.contest import run_contest
    from cvt.bench.contest.results import results_block
    from cvt.bench.contest.runs import PLOT_FILE, RESULTS_FILE, TABLE_FILE
    from cvt.bench.names import read_contender

    results = run_contest([read_contender(name) for name in names], contest, progress=not json)
    if json:
        print_json(results.to_dict())
    else:
        say()
        print_table(results_block(results))
        say()
        say(f"Written to {contest.out}: {RESULTS_FILE}, {TABLE_FILE}, {PLOT_FILE}")
    return int(results.has_failures)


# --- `cvt ablate TABLES...`.

_PRINTED, _TRAINED = (1, 2, 3), (5, 6, 7, 8)


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
    budget: Budget = None,
    seeds: Seeds = 3,
    keep_runs: KeepRuns = True,
    recipe: Recipe = (),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: JsonLines = False,
) -> int:
    """Make the paper's tables again: by counting, or by training.

    Counts stand beside the printed ones; with --data the variants are trained.
    """
    numbers = _numbers(tables)
    if "data" in flags.layer():
        bases = base or ("cvt_nano_32",)
        _check_trained(numbers)
        contest = contest_config(
            ("ablate", *bases),
            recipe,
            flags,
            budget=budget,
            seeds=seeds,
            keep_runs=keep_runs,
        )
        return _train_of_ablate(numbers, bases, contest, json)
    if budget is not None or recipe or flags.layer():
        given = "--budget" if budget is not None else "--recipe" if recipe else _first_flag(flags)
        raise UserError(
            f"Got {given} without --data, so that nothing is trained; name a data set to train "
            "the variants on."
        )
    return _print_counts(numbers, base, json)


def _numbers(tables: tuple[str, ...]) -> list[int]:
    known = ", ".join(map(str, _PRINTED + _TRAINED))
    if not tables:
        raise UserError(f"Got no table, expected one or several of {known}.")
    if "4" in tables:
        raise UserError(
            "Table 4 transfers weights of ImageNet-22k, which only its authors could train; "
            f"expected {known}."
        )
    for text in tables:
        if text not in known.split(", "):
            raise UserError(f"Got table {text!r}, expected one or several of {known}.")
    return [int(text) for text in dict.fromkeys(tables)]


def _first_flag(flags: Flags) -> str:
    name, value = next(iter(flags.layer().items()))
    inside = f".{next(iter(value))}" if isinstance(value, dict) else ""
    return f"--{name}{inside}".replace("_", "-")


def _print_counts(numbers: list[int], bases: tuple[str, ...], json: bool) -> int:
    from cvt.bench.paper.findings import count, counted_block

    ablations, skipped = _ablations([n for n in numbers if n in _TRAINED], bases)
    for number in numbers:
        if number in _PRINTED:
            _show(*_sheet(number, bases), json)
        for ablation in ablations:
            if ablation.table == number:
                findings = count(ablation)
                _show([counted_block(findings)], [each.to_dict() for each in findings], json)
    return _tell(skipped)


def _sheet(number: int, bases: tuple[str, ...]) -> "tuple[list[Block], list[dict[str, Any]]]":
    from cvt.bench.paper.sheets import table_1, table_2, table_3

    if number == 1:
        block, plain = table_1(bases)
        return [block], plain
    if number == 2:
        return table_2()
    block, plain = table_3()
    return [block], plain


def _ablations(numbers: list[int], names: tuple[str, ...]) -> "tuple[list[Ablation], list[str]]":
    """Makes each table from each base that can express it, and a sentence for each that cannot.

    Raises:
        UserError: A base is unknown, or none can express any of the tables.
    """
    from cvt.bench.names import read_base
    from cvt.bench.paper.ablation import make_ablation

    made, skipped = [], []
    for number in numbers:
        usual = ("cvt_13", "deit_small_patch16_224") if number == 5 else ("cvt_13",)
        for base in [read_base(name) for name in dict.fromkeys(names or usual)]:
            try:
                made.append(make_ablation(number, base))
            except UserError as error:
                skipped.append(str(error))
    if numbers and not made:
        raise UserError(skipped[0])
    return made, skipped


def _show(blocks: "list[Block]", plain: list[dict[str, Any]], json: bool) -> None:
    if json:
        for row in plain:
            print_json(row)
        return
    for block in blocks:
        print_table(block)
        say()


def _tell(skipped: list[str]) -> int:
    for sentence in skipped:
        warn(f"skipped: {sentence}")
    return 1 if skipped else 0


def _check_trained(numbers: list[int]) -> None:
    for number in numbers:
        if number in _PRINTED:
            raise UserError(
                f"Got table {number} with --data, and there is nothing to train in it; take "
                "tables of 5 to 8, or leave --data out."
            )


def _train_of_ablate(
    numbers: list[int], bases: tuple[str, ...], contest: "ContestConfig", json: bool
) -> int:
    from cvt.bench.contest.contest import run_contest
    from cvt.bench.paper.findings import NAME, contenders_of, write_report

    ablations, skipped = _ablations(numbers, bases)
    results = run_contest(contenders_of(ablations), contest, progress=not json)
    report = write_report(contest.out, ablations, results)
    for block, findings in zip(report.blocks, report.tables, strict=True):
        _show([block], [each.to_dict() for each in findings], json)
    if not json:
        for note in report.notes:
            say_lines(note)
        say()
        say(f"Tables and picture: {contest.out}/{NAME}.{{md,csv,png}}")
    return max(_tell(skipped), int(results.has_failures))
