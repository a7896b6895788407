"""The sheet of facts: exact counts of rows beside what was published of them, with sources."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cvt.bench.block import Block, is_rounding, say_gmacs, say_number
from cvt.errors import UserError
from cvt.parts.contract import fixed_tables
from cvt.systems.catalog import ROWS, make_network, row_of, system_of
from cvt.zoo.describe import describe

if TYPE_CHECKING:
    from cvt.systems.system import Facts

_COLUMNS = (
    "Model",
    "System",
    "Pixels",
    "Parameters",
    "Frozen",
    "GMACs",
    "Published M",
    "Published GFLOPs",
    "Published top-1 %",
)
_FLOPS = "What papers call FLOPs are multiply-accumulates (MACs); ours are torch's count."


def sheet_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """Counts rows at their own image size and puts the published figures beside.

    Parameters and MACs are counted on torch's meta device at the call; published parameters are
    in millions, published GMACs at the same size, top-1 in percent on ImageNet-1k.

    Raises:
        UserError: No name at all, or an unknown one (the nearest is named).
    """
    if not names:
        raise UserError("Got no model for the sheet, expected names; `cvt models` lists them all.")
    for name in names:
        row_of(name)  # all of them are known, or none is counted
    return [_row(name) for name in dict.fromkeys(names)]


def sheet_block(names: Sequence[str]) -> Block:
    """Returns the sheet as a table, with a note for each source and each difference."""
    rows = sheet_rows(names)
    return Block(
        title="Counts and published figures",
        columns=_COLUMNS,
        rows=tuple(_cells(row) for row in rows),
        notes=(_FLOPS, *_sources(rows), *(note for row in rows for note in _notes(row))),
    )


def sheet_text(names: Sequence[str]) -> str:
    """Returns the sheet as Markdown.

    Raises:
        UserError: As `sheet_rows` does.
    """
    return sheet_block(names).to_markdown()


def _row(name: str) -> dict[str, Any]:
    counted, system = describe(name), system_of(name)
    facts: Facts | None = system.facts.get(name)
    row: dict[str, Any] = {
        "model": name,
        "system": system.name,
        "size": list(counted.size),
        "num_params": counted.num_params,
        "num_frozen": _num_frozen(name),
        "macs": counted.macs,
        "paper": system.paper,
    }
    if facts is not None:
        row |= {
            "published_params": facts.published_params,
            "published_gmacs": facts.published_gmacs,
            "top1": facts.top1,
            "source": facts.source,
            "note": facts.note,
        }
        row["differs"] = _differences(row)
    return row


def _num_frozen(name: str) -> int:
    """Counts the numbers that no training moves, such as T2T-ViT's sinusoids."""
    with torch.device("meta"):
        network = make_network(ROWS[name])
    return sum(each.numel() for each in fixed_tables(network).values())


def _differences(row: dict[str, Any]) -> list[str]:
    """Names the published figures that are not the computed ones, rounded."""
    pairs = {
        "published_params": row["num_params"] / 1e6,
        "published_gmacs": row["macs"] / 1e9,
    }
    return [
        name
        for name, computed in pairs.items()
        if row[name] is not None and not is_rounding(row[name], computed)
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["model"],
        row["system"],
        f"{row['size'][0]}x{row['size'][1]}",
        f"{row['num_params']:,}",
        f"{row['num_frozen']:,}" if row["num_frozen"] else "-",
        say_gmacs(row['macs']),
        *(
            say_number(row.get(name))
            for name in ("published_params", "published_gmacs", "top1")
        ),
    )  # fmt: skip


def _sources(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line a source, with the rows whose published figures stand there."""
    named: dict[str, list[str]] = {}
    for row in rows:
        if row.get("source"):
            named.setdefault(row["source"], []).append(row["model"])
    return [f"Published figures of {', '.join(each)}: {source}" for source, each in named.items()]


def _notes(row: dict[str, Any]) -> list[str]:
    """What a difference between published and computed figures comes from."""
    units = {
        "published_params": ("M parameters", row["num_params"] / 1e6),
        "published_gmacs": ("GMACs", row["macs"] / 1e9),
    }
    found = [
        f"{row[name]} {units[name][0]} are published and {units[name][1]:.3f} counted"
        for name in row.get("differs", ())
    ]
    if not found:
        return [f"{row['model']}: {row['note']}"] if row.get("note") else []
    reason = row["note"] or "the reason is not known"
    return [f"{row['model']}: {', '.join(found)}: {reason}"]
