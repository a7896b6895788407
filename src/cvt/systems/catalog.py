"""All systems in one list: rows by name, networks from specs, specs from plain data."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from cvt.errors import UserError, did_you_mean
from cvt.parts.spec import Spec
from cvt.systems.cpvt import CPVT
from cvt.systems.cvt import CVT
from cvt.systems.deit import DEIT
from cvt.systems.pvt import PVT
from cvt.systems.system import System, is_ours
from cvt.systems.t2t import T2T
from cvt.systems.timm_networks import EFFICIENTNET, PREFIX, RESNET, TIMM, timm_row
from cvt.systems.tnt import TNT
from cvt.systems.twins import TWINS
from cvt.systems.vit import VIT

if TYPE_CHECKING:
    from cvt.parts.model import VisionModel

SYSTEMS: tuple[System, ...] = (CVT, VIT, DEIT, CPVT, TWINS, TNT, T2T, PVT, RESNET, EFFICIENTNET)

ROWS: dict[str, Spec] = {name: row for system in SYSTEMS for name, row in system.rows.items()}


def system_of(name: str) -> System:
    """Returns the system that a row, or `timm/NAME`, belongs to."""
    if name.startswith(PREFIX):
        return TIMM
    for system in SYSTEMS:
        if name in system.rows:
            return system
    hint = did_you_mean(name, ROWS)
    raise UserError(f"Unknown model {name!r}.{hint} `cvt models` lists them all.")


def row_of(name: str) -> Spec:
    """Returns the row of this name, be it of this library or `timm/NAME`."""
    return timm_row(name) if name.startswith(PREFIX) else system_of(name).rows[name]


def timm_name(name: str) -> str:
    """Returns a row's name in timm's registry: `cvt_NAME` where timm has a NAME of its own."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    return f"cvt_{name}" if system_of(name).is_in_timm and not is_ours(name) else name


def name_of_timms(architecture: str) -> str:
    """Returns what a network of timm's is called here: as its row, or `timm/NAME`."""
    row = ROWS.get(architecture)
    return architecture if row is not None and row.made_by_timm else PREFIX + architecture


def make_network(spec: Spec, **options: Any) -> "VisionModel":
    """Builds the network of a spec, in training mode, with fresh weights.

    Args:
        options: Of timm's networks alone: what `timm.create_model` takes besides.
    """
    return resolve_name(spec.network)(spec, **options)


def spec_from_dict(plain: Any) -> Spec:
    """Rebuilds a spec of any kind from its `to_dict`'s data."""
    kinds = {row.kind: type(row) for row in ROWS.values()}
    if not isinstance(plain, Mapping):
        raise UserError(f"Got {type(plain).__name__} for a spec, expected an object with keys.")
    kind = plain.get("kind", "")
    kind = "timm" if kind == "baseline" else kind  # as they were called at first
    if not isinstance(kind, str) or kind not in kinds:
        known = [each for each in kinds if each]
        raise UserError(f"Got a spec of kind {kind!r}, expected {', '.join(known)} or none.")
    return kinds[kind].from_dict({**plain, "kind": kind})
