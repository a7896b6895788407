"""`cvt show NAME`."""

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.flags import Json
from cvt.cli.output import print_json, print_table, say
from cvt.errors import UserError

if TYPE_CHECKING:
    from cvt.weights.record import Record
    from cvt.zoo.describe import Description
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from cvt.errors import did_you_mean

if TYPE_CHECKING:
    from cvt.weights.published import Published


def show(
    name: str,
    *,
    size: Annotated[str | None, Parameter(help="Image size: a side, or HxW as in 224x160.")] = None,
    json: Json = False,
) -> None:
    """Show what a model is made of: grids, tokens, parameters, multiply-accumulates.

    Of a checkpoint it shows as well what it says of itself: classes, preprocessing, figures, terms.

    Parameters
    ----------
    name
        A model of `cvt models`, or a run folder, a checkpoint file, a hub id or the name of
        published weights.
    """
    from cvt.zoo.describe import describe

    sheet = describe(name, parse_size(size) if size else None)
    if json:
        plain = asdict(replace(sheet, record=None))
        if sheet.record is not None:
            plain["record"] = sheet.record.to_dict()
        print_json({name: value for name, value in plain.items() if value is not None})
    else:
        _print(sheet)
        if sheet.record is not None:
            say()
            _print_record(name, sheet.record)


def parse_size(text: str) -> tuple[int, int]:
    """Reads `224` or `224x160` as (height, width) in pixels.

    Raises:
        UserError: The text is neither.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match or 0 in (sides := [int(side) for side in match.groups() if side]):
        raise UserError(f"Got size {text!r}, expected a side or HxW in pixels, as in 224x160.")
    return sides[0], sides[-1]


def _print(sheet: "Description") -> None:
    say(f"{sheet.name}, {_origin(sheet)}, at {_grid(sheet.size)} pixels")
    say()
    if sheet.stages:
        _print_stages(sheet)
    else:
        print_table(("Map", "Grid"), [(n, _grid(g)) for n, g in enumerate(sheet.grids, start=1)])
    say()
    print_table(
        ("Part", "MMACs", "Share %"),
        [
            (part, f"{macs / 1e6:,.1f}", f"{100 * macs / sheet.macs:.1f}")
            for part, macs in sheet.macs_by_part.items()
        ],
    )
    norm = f"final norm {sheet.num_params_norm:,}, " if sheet.num_params_norm else ""
    say()
    say(f"Parameters: {sheet.num_params:,} ({norm}classifier {sheet.num_params_head:,})")
    say(f"MACs: {sheet.macs / 1e9:.3f} G for one image")


def _origin(sheet: "Description") -> str:
    """Whose network it is: the system and its paper, or ours after it."""
    from cvt.systems.catalog import system_of

    system = system_of(sheet.name)
    paper = f"{system.name} ({system.paper})"
    origin = paper if sheet.from_paper else f"of this library, not from the paper of {paper}"
    return origin + (f", {_changes(sheet.record)}" if sheet.record else "")


def _changes(record: "Record") -> str:
    """In what a checkpoint's network differs from its row."""
    from cvt.systems.catalog import ROWS
    from cvt.weights.timm_folder import model_args

    own, row = record.spec.staged, ROWS[record.model].staged
    if own and row and len(own.stages) != len(row.stages):
        return "with another number of stages"
    names = ", ".join(model_args(record.model, record.spec))
    return f"changed in {names}" if names else "unchanged"


def _print_record(name: str, record: "Record") -> None:
    about, names = record.preprocessing, record.class_names or ()
    say(f"Checkpoint: {name}" + (f", from {record.source}" if record.source else ""))
    each = ", each there or not by itself" if record.multi_label else ""
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    say(f"Classes: {record.spec.num_classes:,}{each}: {listed or 'without names'}")
    channels = ", ".join(
        f"{mean:.4g}/{std:.4g}" for mean, std in zip(about.mean, about.std, strict=True)
    )
    say(
        f"Images: {about.input_size[0]} x {_grid(about.size)}, {about.interpolation}, "
        f"{about.crop_mode} crop of {about.crop_pct:.4g}; mean/std {channels}"
    )
    figures = ", ".join(f"{name} {value:.6g}" for name, value in record.metrics.items())
    say(f"Figures: {figures or 'none recorded'}")
    say(f"Licence: {record.licence or 'not recorded'}")


_NAMED = 10


def _print_stages(sheet: "Description") -> None:
    print_table(
        (
            *("Stage", "Grid", "Tokens", "KV grid", "KV tokens"),
            *("Width", "Heads", "Blocks", "Parameters", "MMACs"),
        ),
        [
            (
                number,
                _grid(stage.grid),
                f"{stage.num_tokens:,}",
                _grid(stage.kv_grid),
                f"{stage.num_kv_tokens:,}",
                stage.embed_dim,
                stage.num_heads,
                stage.depth,
                f"{stage.num_params:,}",
                f"{stage.macs / 1e6:,.1f}",
            )
            for number, stage in enumerate(sheet.stages, start=1)
        ],
    )


def _grid(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- `cvt models`.

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

    from cvt.parts.model import num_params
    from cvt.systems.catalog import ROWS, make_network

    with torch.device("meta"):
        return num_params(make_network(ROWS[name]))
