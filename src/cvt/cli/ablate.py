"""`cvt ablate TABLES...`."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cvt.cli.contest_flags import Budget, KeepRuns, Recipe, Seeds, contest_config
from cvt.cli.flags import JsonLines
from cvt.cli.output import print_json, print_table, say, say_lines
from cvt.cli.train import Flags
from cvt.errors import UserError

if TYPE_CHECKING:
    from cvt.bench.ablation import Ablation
    from cvt.bench.block import Block
    from cvt.bench.contest import ContestConfig

_PRINTED, _TRAINED = (1, 2, 3), (5, 6, 7, 8)
_INSTEAD = {"model": "--base NAME", "model_args": "--base NAME+FIELD=VALUE"}


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
    config: Recipe = (),
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: JsonLines = False,
) -> int:
    """Make the paper's tables again: counts beside the printed ones, or with --data by training."""
    numbers = _numbers(tables)
    if "data" in flags.given:
        bases = base or ("cvt_nano_32",)
        _check_trained(numbers)
        contest = contest_config(
            ("ablate", *bases),
            config,
            flags,
            budget=budget,
            seeds=seeds,
            keep_runs=keep_runs,
            instead=_INSTEAD,
        )
        return _train(numbers, bases, contest, json)
    if budget is not None or config or flags.given:
        given = "--budget" if budget is not None else "--config" if config else _first_flag(flags)
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
    return "--" + next(iter(flags.given)).replace("_", "-")


def _print_counts(numbers: list[int], bases: tuple[str, ...], json: bool) -> int:
    from cvt.bench.ablation_blocks import counted_block
    from cvt.bench.findings import count

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
    from cvt.bench.paper_sheets import table_1, table_2, table_3

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
    from cvt.bench.ablation_tables import make_ablation
    from cvt.bench.base import read_base

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
        say(block.title)
        say()
        print_table(block.columns, block.rows)
        say()
        for note in block.notes:
            say_lines(note)
        if block.notes:
            say()


def _tell(skipped: list[str]) -> int:
    for sentence in skipped:
        say(f"cvt: skipped: {sentence}", error=True)
    return 1 if skipped else 0


def _check_trained(numbers: list[int]) -> None:
    for number in numbers:
        if number in _PRINTED:
            raise UserError(
                f"Got table {number} with --data, and there is nothing to train in it; take "
                "tables of 5 to 8, or leave --data out."
            )


def _train(numbers: list[int], bases: tuple[str, ...], contest: "ContestConfig", json: bool) -> int:
    from cvt.bench.ablation_report import NAME, write_report
    from cvt.bench.contest import run_contest
    from cvt.bench.findings import contenders_of

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
