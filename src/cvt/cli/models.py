"""`cvt models`."""

from typing import TYPE_CHECKING

from cvt.cli.flags import Json
from cvt.cli.output import print_json, print_table
from cvt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cvt.weights.published import Published
    from cvt.zoo.describe import Description


def models(pattern: str = "*", *, json: Json = False) -> None:
    """List the models and the published weights.

    Parameters
    ----------
    pattern
        Shell pattern that the names must fit, such as 'cvt_*_32'.
    """
    from cvt.weights.published import PUBLISHED
    from cvt.zoo.create import list_models
    from cvt.zoo.describe import describe

    names, weights = list_models(pattern), list_models(pattern, pretrained=True)
    if not names and not weights:
        hint = did_you_mean(pattern, list_models())
        raise UserError(f"No model fits {pattern!r}.{hint} `cvt models` lists them all.")
    sheets = [describe(name) for name in names]
    published = [PUBLISHED[name] for name in weights]
    (_print_json if json else _print_tables)(sheets, published)


def _print_json(sheets: "list[Description]", published: "list[Published]") -> None:
    for sheet in sheets:
        print_json(
            {
                "model": sheet.name,
                "params": sheet.num_params,
                "macs": sheet.macs,
                "size": sheet.size,
                "from_paper": sheet.from_paper,
            }
        )
    for each in published:
        print_json({"weights": each.name, "hub_id": each.hub_id, "top1": each.top1})


def _print_tables(sheets: "list[Description]", published: "list[Published]") -> None:
    if sheets:
        print_table(
            ("Model", "Pixels", "Parameters", "GMACs", "From"),
            [
                (
                    sheet.name,
                    f"{sheet.size[0]}x{sheet.size[1]}",
                    f"{sheet.num_params:,}",
                    f"{sheet.macs / 1e9:.3f}",
                    "the paper" if sheet.from_paper else "this library, not the paper",
                )
                for sheet in sheets
            ],
        )
    if published:
        print()
        print_table(
            ("Published weights", "Top-1 %", "Side", "Hub id", "Reported by"),
            [(p.name, p.top1, p.preprocessing.size[0], p.hub_id, p.top1_by) for p in published],
        )
