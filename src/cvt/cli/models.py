"""`cvt models`."""

from fnmatch import fnmatch
from typing import TYPE_CHECKING

from cvt.cli.flags import Json
from cvt.cli.output import print_json, print_table, say
from cvt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cvt.weights.published import Published

# Counting MACs takes half a second a network: of more than these, those on record are shown.
_COUNTED = 12


def models(pattern: str = "*", *, json: Json = False) -> None:
    """List the models, system by system, and the published weights.

    A list of more than a dozen shows the MACs that are on record; a shorter one, and --json,
    count every model's.

    Parameters
    ----------
    pattern
        Shell pattern that the names must fit, such as 'cvt_*_32'.
    """
    from cvt.systems.catalog import ROWS
    from cvt.weights.published import PUBLISHED

    names = [name for name in ROWS if fnmatch(name, pattern)]
    published = [each for name, each in PUBLISHED.items() if fnmatch(name, pattern)]
    if not names and not published:
        hint = did_you_mean(pattern, ROWS)
        raise UserError(f"No model fits {pattern!r}.{hint} `cvt models` lists them all.")
    (_print_json if json else _print_tables)(names, published)


def _print_json(names: list[str], published: "list[Published]") -> None:
    from cvt.systems.catalog import system_of
    from cvt.zoo.describe import describe

    for sheet in map(describe, names):
        print_json(
            {
                "model": sheet.name,
                "system": system_of(sheet.name).name,
                "params": sheet.num_params,
                "macs": sheet.macs,
                "size": sheet.size,
                "from_paper": sheet.from_paper,
            }
        )
    for each in published:
        print_json({"weights": each.name, "hub_id": each.hub_id, "top1": each.top1})


def _print_tables(names: list[str], published: "list[Published]") -> None:
    from cvt.systems.catalog import system_of

    if names:
        is_long = len(names) > _COUNTED
        rows = [_row(name, is_long) for name in names]
        print_table(("Model", "Pixels", "Parameters", "GMACs", "Top-1 %", "From"), rows)
        say()
        systems = {system.name: system.paper for system in map(system_of, names)}
        print_table(("System", "Paper"), list(systems.items()))
        if any(row[3] == "-" for row in rows):
            say()
            say("GMACs that are not on record are counted by `cvt show NAME`.")
    if published:
        say()
        print_table(
            ("Published weights", "Top-1 %", "Side", "Hub id", "Reported by"),
            [(p.name, p.top1, p.preprocessing.size[0], p.hub_id, p.top1_by) for p in published],
        )


def _row(name: str, is_long: bool) -> tuple[str, ...]:
    """One line of the list; top-1 is what was published for the row on ImageNet-1k."""
    from cvt.systems.catalog import ROWS, system_of

    system, (height, width) = system_of(name), ROWS[name].img_size
    facts = system.facts.get(name)
    if is_long:
        params = facts.num_params if facts else _count_params(name)
        gmacs = facts.gmacs if facts else None
    else:
        from cvt.zoo.describe import describe

        sheet = describe(name)
        params, gmacs = sheet.num_params, sheet.macs / 1e9
    return (
        name,
        f"{height}x{width}",
        f"{params:,}",
        "-" if gmacs is None else f"{gmacs:.3f}",
        "-" if facts is None or facts.top1 is None else f"{facts.top1:.1f}",
        "this library, not the paper" if name.endswith("_32") else system.name,
    )


def _count_params(name: str) -> int:
    import torch

    from cvt.parts.contract import num_params
    from cvt.systems.catalog import ROWS, make_network

    with torch.device("meta"):
        return num_params(make_network(ROWS[name]))
