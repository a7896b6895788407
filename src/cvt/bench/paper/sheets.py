"""The paper's Tables 1, 2 and 3 made again from the rows, beside what is printed there."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from cvt.bench.names import read_row
from cvt.bench.paper.tables import PAPER, TABLE_1, TABLE_2, TABLE_3, Network, Result, System
from cvt.bench.tables import Block, is_rounding, say_gmacs, say_number
from cvt.errors import UserError
from cvt.parts.model import fixed_tables
from cvt.parts.spec import Axes, StageSpec
from cvt.systems.catalog import ROWS, SYSTEMS, make_network, row_of, system_of
from cvt.zoo.describe import Description, StageDescription, describe

if TYPE_CHECKING:
    from cvt.systems.system import Facts


# --- The paper's Table 1, read off the rows.

_AXES = ("position", "embedding", "projection", "hierarchical")


def table_1(extra: Sequence[str] = ()) -> tuple[Block, list[dict[str, Any]]]:
    """Derives the four axes from every row of each system, and says where they are not printed so.

    Args:
        extra: Bases, as `read_row` reads them, that get lines of their own.
    """
    plain, cells, notes = [], [], []
    for line in TABLE_1:
        found = _axes_of_system(line)
        printed = Axes(**{name: getattr(line, name) for name in _AXES})
        for axes, names in found.items():
            plain.append(
                {
                    "method": line.label,
                    "rows": names,
                    "derived": asdict(axes),
                    "printed": asdict(printed),
                }
            )
            cells += [
                (line.label, f"printed in {PAPER}", *asdict(printed).values()),
                ("", f"derived from {len(names)} rows", *asdict(axes).values()),
            ]
            if axes != printed:
                notes.append(f"{line.label}: {', '.join(names)} differ from the printed line.")
    for name in extra:
        axes = read_row(name)[1].axes
        if axes is not None:
            plain.append({"method": name, "rows": [name], "derived": asdict(axes)})
            cells.append((name, "derived", *asdict(axes).values()))
    columns = ("Method", "Words", "Needs position encoding", "Token embedding", "Projection",
               "Hierarchical")  # fmt: skip
    block = Block(
        title="Table 1: vision transformers on four axes",
        columns=columns,
        rows=tuple(cells),
        notes=tuple(notes),
    )
    return block, plain


def _axes_of_system(line: System) -> dict[Axes, list[str]]:
    """The axes that a system's rows have, with the rows that have them: one entry, if all agree."""
    found: dict[Axes, list[str]] = {}
    for system in SYSTEMS:
        if system.name.lower() in line.systems:
            for name, spec in system.rows.items():
                axes = spec.axes
                assert axes is not None
                found.setdefault(axes, []).append(name)
    return found


def table_2() -> tuple[list[Block], list[dict[str, Any]]]:
    """The three published networks stage by stage, counted at 224 pixels."""
    blocks, plain = [], []
    for network in TABLE_2:
        counted = describe(network.row, 224)
        blocks.append(_network_block(network, counted))
        plain.append(
            {
                "model": network.row,
                "num_params": counted.num_params,
                "macs": counted.macs,
                "published_params": network.params,
                "published_gmacs": network.gmacs,
                "stages": [asdict(stage) for stage in counted.stages],
                "published_grids": list(network.grids),
            }
        )
    return blocks, plain


def _network_block(network: Network, counted: Description) -> Block:
    spec = ROWS[network.row].staged
    assert spec is not None
    rows = [
        _stage_cells(number, stage, found, side)
        for number, (stage, found, side) in enumerate(
            zip(spec.stages, counted.stages, network.grids, strict=True), start=1
        )
    ]
    rows.append(
        ("head", "1x1", "1x1", f"norm, linear, {spec.num_classes}", "",
         f"{counted.num_params_norm + counted.num_params_head:,}",
         f"{(counted.macs - sum(stage.macs for stage in counted.stages)) / 1e9:.3f}")
    )  # fmt: skip
    rows.append(
        ("all", "", "", "", "", f"{counted.num_params:,}", f"{counted.macs / 1e9:.3f}")
    )  # fmt: skip
    rows.append(("printed", "", "", "", "", f"{network.params:g} M", f"{network.gmacs:g}"))
    return Block(
        title=f"Table 2: {network.row} at 224 pixels",
        columns=("Stage", "Output", "Printed", "Embedding", "Blocks", "Parameters", "GMACs"),
        rows=tuple(rows),
        notes=(_apart(network, counted),),
    )


def _stage_cells(
    number: int, stage: StageSpec, found: StageDescription, side: int
) -> tuple[str, ...]:
    embedding = f"{stage.embed_kernel}x{stage.embed_kernel}, {stage.embed_dim}"
    blocks = (
        f"{stage.depth} x (conv {stage.conv_kernel}x{stage.conv_kernel}, H {stage.num_heads}, "
        f"D {stage.embed_dim}, R {stage.mlp_ratio:g})"
    )
    return (
        str(number),
        f"{found.grid[0]}x{found.grid[1]}",
        f"{side}x{side}",
        f"{embedding}, stride {stage.embed_stride}",
        blocks,
        f"{found.num_params:,}",
        f"{found.macs / 1e9:.3f}",
    )


def _apart(network: Network, counted: Description) -> str:
    params = 100 * (network.params * 1e6 / counted.num_params - 1)
    macs = 100 * (network.gmacs * 1e9 / counted.macs - 1)
    return (
        f"The printed figures are {params:+.1f} % (parameters) and {macs:+.1f} % (GFLOPs, which "
        "are MACs) off the counted ones; the origin of the difference is not known. The authors' "
        "code and Hugging Face's port have the counted number of parameters."
    )


def table_3() -> tuple[Block, list[dict[str, Any]]]:
    """Every line of Table 3: counted where there is a row, with a reason where there is none."""
    plain = [_result(line) for line in TABLE_3]
    columns = ("Group", "Model", "Row", "Side", "Printed M", "Counted M", "Printed GFLOPs",
               "Counted GMACs", "Top-1 %", "ReaL %", "V2 %", "Apart")  # fmt: skip
    notes = [
        f"Printed parameters, GFLOPs (which are MACs) and accuracies: {PAPER}, Table 3.",
        "Counted for 1000 classes; the groups with 22k were trained on ImageNet-22k first.",
    ]
    notes += [f"{row['label']}: {row['note']}." for row in plain if row["note"] and row["row"]]
    notes += [f"{row['label']} has no row: {row['note']}." for row in plain if not row["row"]]
    block = Block(
        title="Table 3: ImageNet",
        columns=columns,
        rows=tuple(_result_cells(row) for row in plain),
        notes=tuple(dict.fromkeys(notes)),
    )
    return block, plain


def _result(line: Result) -> dict[str, Any]:
    row: dict[str, Any] = asdict(line)
    if line.row is None:
        return {**row, "apart": []}
    counted = describe(line.row, line.size)
    apart = []
    if not is_rounding(line.params, counted.num_params / 1e6):
        apart.append("parameters")
    if line.gmacs is not None and not is_rounding(line.gmacs, counted.macs / 1e9):
        apart.append("GMACs")
    return {**row, "num_params": counted.num_params, "macs": counted.macs, "apart": apart}


def _result_cells(row: dict[str, Any]) -> tuple[str, ...]:
    has = row["row"] is not None
    return (
        row["group"],
        row["label"],
        row["row"] or "no row",
        str(row["size"]),
        say_number(row["params"]),
        f"{row['num_params'] / 1e6:.3f}" if has else "-",
        say_number(row["gmacs"]),
        f"{row['macs'] / 1e9:.3f}" if has else "-",
        *(say_number(row[name], 1) for name in ("top1", "real", "v2")),
        ", ".join(row["apart"]) or "-",
    )


# --- The sheet of facts: exact counts of rows beside what was published of them, with sources.

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
