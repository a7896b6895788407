"""`cvt models [PATTERN]` and `cvt show NAME`."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.flags import Json, JsonLines
from cvt.cli.output import print_json, print_table, say
from cvt.errors import UserError, did_you_mean
from cvt.plain import to_plain
from cvt.tables import Table

if TYPE_CHECKING:
    from cvt.weights.record import Record
    from cvt.zoo.describe import Description

# Counting MACs takes half a second a network: of more than these, those on record are shown.
_COUNTED = 12
_NAMED = 10


def models(
    pattern: Annotated[
        str,
        Parameter(
            help="Shell pattern that the names must fit, such as 'cvt_*_32', or 'timm/resnet*' for "
            "timm's."
        ),
    ] = "*",
    /,
    *,
    json: JsonLines = False,
) -> None:
    """List the models and the published weights.

    A list of more than a dozen shows the MACs that are on record; a shorter one, and --json,
    count every model's. Of timm's networks it names the weights.
    """
    from cvt.systems.catalog import ROWS, system_of
    from cvt.systems.timm_networks import PREFIX
    from cvt.weights.published import PUBLISHED

    if pattern.startswith(PREFIX):
        _list_timms(pattern, json)
        return
    names = [name for name in ROWS if fnmatch(name, pattern)]
    published = [each for name, each in PUBLISHED.items() if fnmatch(name, pattern)]
    if not names and not published:
        hint = did_you_mean(pattern, ROWS)
        raise UserError(f"No model fits {pattern!r}.{hint} `cvt models` lists them all.")
    is_counted = json or len(names) <= _COUNTED
    rows = [_row(name, is_counted) for name in names]
    if json:
        for row in rows:
            print_json(row)
        for each in published:
            print_json({"weights": each.name, "hub_id": each.hub_id, "top1": each.top1})
        return
    if rows:
        print_table(Table.of(rows, _MODELS))
        say()
        systems = {system.name: system for system in map(system_of, names)}
        print_table(Table.of(systems.values(), {"System": "name", "Paper": "paper"}))
        if any(row.macs is None for row in rows):
            say()
            say("GMACs that are not on record are counted by `cvt show NAME`.")
    if published:
        say()
        print_table(Table.of(published, _WEIGHTS))


@dataclass(frozen=True, kw_only=True)
class _TimmRow:
    """A network of timm's in the list: the first of its weights is what its bare name stands for.

    `size` is that of the first weights; `licence` is theirs.
    """

    model: str
    size: tuple[int, int]
    weights: tuple[str, ...]
    licence: str | None


def _list_timms(pattern: str, json: bool) -> None:
    from cvt.systems.timm_networks import PREFIX, timm_config, timm_names, timm_row

    names, rows = timm_names(pattern), []
    if not names:
        hint = did_you_mean(pattern, timm_names(f"{PREFIX}*"))
        raise UserError(f"No network of timm's fits {pattern!r}.{hint}")
    tags = {name: [] for name in names}
    for each in timm_names(f"{pattern.partition('.')[0]}.*", pretrained=True):
        name, _, tag = each.partition(".")
        tags[name].append(tag)
    for name in names:
        first = timm_config(name)
        own = first.get("tag")
        row = _TimmRow(
            model=name,
            size=timm_row(name).img_size,
            weights=tuple(sorted(tags[name], key=lambda tag, own=own: (tag != own, tag))),
            licence=first.get("license"),
        )
        rows.append(row)
    if json:
        for row in rows:
            print_json(row)
        return
    print_table(Table.of(rows, _TIMMS))
    say()
    say("`cvt show NAME` counts one; --weights NAME.WEIGHTS starts from its weights.")


_TIMMS = {
    "Model": "model",
    "Pixels": lambda row: _grid(row.size),
    "Weights": lambda row: ", ".join(row.weights) or None,
    "Licence": "licence",
}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A model of the list."""

    model: str
    system: str
    params: int
    macs: float | None
    size: tuple[int, int]
    from_paper: bool


def _row(name: str, is_counted: bool) -> _Row:
    """Counts a model, or looks up what is on record of it."""
    from cvt.systems.catalog import ROWS, make_network, system_of
    from cvt.systems.system import is_ours

    system, spec = system_of(name), ROWS[name]
    if is_counted:
        from cvt.zoo.describe import describe

        sheet = describe(name)
        params, macs = sheet.num_params, sheet.macs
    elif facts := system.facts.get(name):
        params, macs = facts.num_params, facts.gmacs and facts.gmacs * 1e9
    else:
        import torch

        from cvt.parts.model import num_params

        with torch.device("meta"):
            params, macs = num_params(make_network(spec)), None
    return _Row(
        model=name,
        system=system.name,
        params=params,
        macs=macs,
        size=spec.img_size,
        from_paper=not is_ours(name),
    )


def _top1(row: _Row) -> str | None:
    """What was published for the model on ImageNet-1k."""
    from cvt.systems.catalog import system_of

    facts = system_of(row.model).facts.get(row.model)
    return f"{facts.top1:.1f}" if facts and facts.top1 is not None else None


_MODELS = {
    "Model": "model",
    "Pixels": lambda row: _grid(row.size),
    "Parameters": "params:,",
    "GMACs": lambda row: row.macs and f"{row.macs / 1e9:.3f}",
    "Top-1 %": _top1,
    "From": lambda row: row.system if row.from_paper else "this library, not the paper",
}
_WEIGHTS = {
    "Published weights": "name",
    "Top-1 %": "top1",
    "Side": lambda weights: weights.preprocessing.size[0],
    "Hub id": "hub_id",
    "Reported by": "top1_by",
}


# --- `cvt show NAME`.


def show(
    name: Annotated[
        str,
        Parameter(
            help="A model of `cvt models`, timm/NAME, a run folder, a checkpoint file, a hub id or "
            "the name of published weights."
        ),
    ],
    /,
    *,
    image_size: Annotated[
        str | None, Parameter(help="A side in pixels, or HxW as in 224x160; the model's own.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a model's stages: grids, tokens, parameters, MACs.

    Of a checkpoint it also shows what it says of itself: classes, preprocessing, figures, licence.
    """
    from cvt.zoo.describe import describe

    sheet = describe(name, parse_size(image_size) if image_size else None)
    if json:
        print_json(to_plain(sheet, none=False))
        return
    _print(sheet)
    if sheet.record is not None:
        say()
        _print_record(name, sheet.record)


def parse_size(text: str) -> tuple[int, int]:
    """Reads `224` or `224x160` as (height, width) in pixels."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match or 0 in (sides := [int(side) for side in match.groups() if side]):
        raise UserError(f"Got size {text!r}, expected a side or HxW in pixels, as in 224x160.")
    return sides[0], sides[-1]


_STAGES = {
    "Stage": lambda each: each[0],
    "Grid": lambda each: _grid(each[1].grid),
    "Tokens": lambda each: f"{each[1].num_tokens:,}",
    "KV grid": lambda each: _grid(each[1].kv_grid),
    "KV tokens": lambda each: f"{each[1].num_kv_tokens:,}",
    "Width": lambda each: each[1].embed_dim,
    "Heads": lambda each: each[1].num_heads,
    "Blocks": lambda each: each[1].depth,
    "Parameters": lambda each: f"{each[1].num_params:,}",
    "MMACs": lambda each: f"{each[1].macs / 1e6:,.1f}",
}
_MAPS = {"Map": lambda each: each[0], "Grid": lambda each: _grid(each[1])}
_WIDE_MAPS = {
    "Map": lambda each: each[0],
    "Grid": lambda each: _grid(each[1][0]),
    "Channels": lambda each: each[1][1],
}


def _print(sheet: "Description") -> None:
    say(f"{sheet.name}, {_origin(sheet)}, at {_grid(sheet.size)} pixels")
    say()
    rows, columns = (sheet.stages, _STAGES) if sheet.stages else (sheet.grids, _MAPS)
    if sheet.widths:
        rows, columns = tuple(zip(sheet.grids, sheet.widths, strict=True)), _WIDE_MAPS
    print_table(Table.of(enumerate(rows, start=1), columns))
    say()
    by_part = {
        "Part": lambda part: part[0],
        "MMACs": lambda part: f"{part[1] / 1e6:,.1f}",
        "Share %": lambda part: f"{100 * part[1] / sheet.macs:.1f}",
    }
    print_table(Table.of(sheet.macs_by_part.items(), by_part))
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
    from cvt.systems.catalog import row_of
    from cvt.weights.timm_folder import model_args

    own, row = record.spec.staged, row_of(record.model).staged
    if own and row and len(own.stages) != len(row.stages):
        return "with another number of stages"
    names = ", ".join(model_args(record.model, record.spec))
    return f"changed in {names}" if names else "unchanged"


def _print_record(name: str, record: "Record") -> None:
    about, names = record.preprocessing, record.class_names or ()
    say(f"Checkpoint: {name}" + (f", from {record.source}" if record.source else ""))
    each = ", any number of them in one image" if record.multi_label else ""
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


def _grid(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
