"""The paper's Tables 1, 2 and 3 made again from the rows, and a sheet of any rows' facts.

Each comes as tables for people and as plain data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from cvt.bench.names import read_base
from cvt.bench.paper.tables import (
    PAPER,
    TABLE_1,
    TABLE_2,
    TABLE_2_GRIDS,
    TABLE_3,
    PaperLine,
    is_rounding,
    say_gmacs,
)
from cvt.errors import UserError
from cvt.parts.model import fixed_tables
from cvt.parts.spec import Axes
from cvt.systems.catalog import ROWS, SYSTEMS, make_network, row_of, system_of
from cvt.tables import Table
from cvt.zoo.describe import describe

Plain = dict[str, Any]


def table_1(extra: Sequence[str] = ()) -> tuple[list[Table], list[Plain]]:
    """Derives the four axes from every row of each system, and says where they are not printed so.

    Args:
        extra: Bases, as `read_base` reads them, that get lines of their own.
    """
    plain, cells, notes = [], [], []
    for method, (systems, printed) in TABLE_1.items():
        found: dict[Axes, list[str]] = {}  # one entry, if all rows agree
        for system in SYSTEMS:
            for name, spec in system.rows.items() if system.name.lower() in systems else ():
                assert spec.axes is not None
                found.setdefault(spec.axes, []).append(name)
        for axes, names in found.items():
            derived, line = asdict(axes), asdict(printed)
            plain.append({"method": method, "rows": names, "derived": derived, "printed": line})
            cells += [
                (method, f"printed in {PAPER}", *line.values()),
                ("", f"derived from {len(names)} rows", *derived.values()),
            ]
            if axes != printed:
                notes.append(f"{method}: {', '.join(names)} differ from the printed line.")
    for name in extra:
        axes = read_base(name).spec.axes
        if axes is not None:
            plain.append({"method": name, "rows": [name], "derived": asdict(axes)})
            cells.append((name, "derived", *asdict(axes).values()))
    columns = ("Method", "Words", "Needs position encoding", "Token embedding", "Projection",
               "Hierarchical")  # fmt: skip
    title = "Table 1: vision transformers on four axes"
    return [Table(title=title, columns=columns, rows=tuple(cells), notes=tuple(notes))], plain


def table_2() -> tuple[list[Table], list[Plain]]:
    """The three published networks stage by stage, counted at 224 pixels."""
    made = [_network(name, line) for name, line in TABLE_2.items()]
    return [table for table, _ in made], [plain for _, plain in made]


def _network(name: str, line: PaperLine) -> tuple[Table, Plain]:
    spec, counted = ROWS[name].staged, describe(name, line.size)
    assert spec is not None
    rows = [
        (
            str(number),
            f"{found.grid[0]}x{found.grid[1]}",
            f"{side}x{side}",
            f"{stage.embed_kernel}x{stage.embed_kernel}, {stage.embed_dim}, "
            f"stride {stage.embed_stride}",
            f"{stage.depth} x (conv {stage.conv_kernel}x{stage.conv_kernel}, H {stage.num_heads}, "
            f"D {stage.embed_dim}, R {stage.mlp_ratio:g})",
            f"{found.num_params:,}",
            f"{found.macs / 1e9:.3f}",
        )
        for number, (stage, found, side) in enumerate(
            zip(spec.stages, counted.stages, TABLE_2_GRIDS, strict=True), start=1
        )
    ]
    head_params = counted.num_params_norm + counted.num_params_head
    head_macs = counted.macs - sum(stage.macs for stage in counted.stages)
    rows += [
        ("head", "1x1", "1x1", f"norm, linear, {spec.num_classes}", "", f"{head_params:,}",
         f"{head_macs / 1e9:.3f}"),
        ("all", "", "", "", "", f"{counted.num_params:,}", f"{counted.macs / 1e9:.3f}"),
        ("printed", "", "", "", "", f"{line.params:g} M", f"{line.gmacs:g}"),
    ]  # fmt: skip
    params = 100 * ((line.params or 0.0) * 1e6 / counted.num_params - 1)
    macs = 100 * ((line.gmacs or 0.0) * 1e9 / counted.macs - 1)
    note = (
        f"The printed figures are {params:+.1f} % (parameters) and {macs:+.1f} % (GFLOPs, which "
        "are MACs) off the counted ones; the origin of the difference is not known. The authors' "
        "code and Hugging Face's port have the counted number of parameters."
    )
    table = Table(
        title=f"Table 2: {name} at {line.size} pixels",
        columns=("Stage", "Output", "Printed", "Embedding", "Blocks", "Parameters", "GMACs"),
        rows=tuple(rows),
        notes=(note,),
    )
    plain = {
        "model": name,
        "num_params": counted.num_params,
        "macs": counted.macs,
        "published_params": line.params,
        "published_gmacs": line.gmacs,
        "stages": [asdict(stage) for stage in counted.stages],
        "published_grids": list(TABLE_2_GRIDS),
    }
    return table, plain


def table_3() -> tuple[list[Table], list[Plain]]:
    """Every line of Table 3: counted where there is a row, with a reason where there is none."""
    plain = [_line(group, line) for group, lines in TABLE_3.items() for line in lines]
    notes = [
        f"Printed parameters, GFLOPs (which are MACs) and accuracies: {PAPER}, Table 3.",
        "Counted for 1000 classes; the groups with 22k were trained on ImageNet-22k first.",
    ]
    notes += [f"{row['label']}: {row['note']}." for row in plain if row["note"] and row["row"]]
    notes += [f"{row['label']} has no row: {row['note']}." for row in plain if not row["row"]]
    columns: dict[str, str | Callable[[Plain], object]] = {
        "Group": "group",
        "Model": "label",
        "Row": lambda row: row["row"] or "no row",
        "Side": "size",
        "Printed M": "params",
        "Counted M": lambda row: f"{row['num_params'] / 1e6:.3f}" if row["row"] else None,
        "Printed GFLOPs": "gmacs",
        "Counted GMACs": lambda row: f"{row['macs'] / 1e9:.3f}" if row["row"] else None,
        "Top-1 %": "top1:.1f",
        "ReaL %": "real:.1f",
        "V2 %": "v2:.1f",
        "Apart": lambda row: ", ".join(row["apart"]) or None,
    }
    return [Table.of(plain, columns, "Table 3: ImageNet", tuple(dict.fromkeys(notes)))], plain


_counted = cache(describe)  # some rows of the table stand in two groups


def _line(group: str, line: PaperLine) -> Plain:
    plain = {"group": group, **asdict(line)}
    if line.row is None:
        return {**plain, "apart": []}
    counted = _counted(line.row, line.size)
    figures = {
        "parameters": (line.params, counted.num_params / 1e6),
        "GMACs": (line.gmacs, counted.macs / 1e9),
    }
    return {
        **plain,
        "num_params": counted.num_params,
        "macs": counted.macs,
        "apart": _apart(figures),
    }


def _apart(figures: Mapping[str, tuple[float | None, float]]) -> list[str]:
    """Names the published figures that are not the computed ones, rounded."""
    return [
        name
        for name, (published, computed) in figures.items()
        if published is not None and not is_rounding(published, computed)
    ]


# --- The sheet of facts: exact counts of rows beside what was published of them, with sources.


def sheet(names: Sequence[str]) -> tuple[list[Table], list[Plain]]:
    """Counts rows at their own image size and puts the published figures beside.

    Parameters and MACs are counted on torch's meta device at the call; published parameters are
    in millions, published GMACs at the same size, top-1 in percent on ImageNet-1k.
    """
    if not names:
        raise UserError("Got no model for the sheet, expected names; `cvt models` lists them all.")
    for name in names:
        row_of(name)  # all of them are known, or none is counted
    plain = [_facts(name) for name in dict.fromkeys(names)]
    sources: dict[str, list[str]] = {}
    for row in plain:
        if row.get("source"):
            sources.setdefault(row["source"], []).append(row["model"])
    notes = [
        "What papers call FLOPs are multiply-accumulates (MACs); ours are torch's count.",
        *(f"Published figures of {', '.join(of)}: {source}" for source, of in sources.items()),
        *(note for row in plain for note in _reasons(row)),
    ]
    columns: dict[str, str | Callable[[Plain], object]] = {
        "Model": "model",
        "System": "system",
        "Pixels": lambda row: "x".join(map(str, row["size"])),
        "Parameters": "num_params:,",
        "Frozen": lambda row: f"{row['num_frozen']:,}" if row["num_frozen"] else None,
        "GMACs": lambda row: say_gmacs(row["macs"]),
        "Published M": "published_params",
        "Published GFLOPs": "published_gmacs",
        "Published top-1 %": "top1",
    }
    return [Table.of(plain, columns, "Counts and published figures", tuple(notes))], plain


def _facts(name: str) -> Plain:
    counted, system = describe(name), system_of(name)
    with torch.device("meta"):
        frozen = fixed_tables(make_network(row_of(name))).values()  # T2T-ViT's sinusoids, say
    plain: Plain = {
        "model": name,
        "system": system.name,
        "size": list(counted.size),
        "num_params": counted.num_params,
        "num_frozen": sum(each.numel() for each in frozen),
        "macs": counted.macs,
        "paper": system.paper,
    }
    facts = system.facts.get(name)
    if facts is None:
        return plain
    figures = {
        "published_params": (facts.published_params, counted.num_params / 1e6),
        "published_gmacs": (facts.published_gmacs, counted.macs / 1e9),
    }
    return {
        **plain,
        **{figure: published for figure, (published, _) in figures.items()},
        "top1": facts.top1,
        "source": facts.source,
        "note": facts.note,
        "differs": _apart(figures),
    }


def _reasons(row: Plain) -> list[str]:
    """What a difference between published and computed figures comes from."""
    counted = {
        "published_params": f"M parameters are published and {row['num_params'] / 1e6:.3f}",
        "published_gmacs": f"GMACs are published and {row['macs'] / 1e9:.3f}",
    }
    found = [f"{row[name]} {counted[name]} counted" for name in row.get("differs", ())]
    if not found:
        return [f"{row['model']}: {row['note']}"] if row.get("note") else []
    return [f"{row['model']}: {', '.join(found)}: {row['note'] or 'the reason is not known'}"]
