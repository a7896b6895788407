"""Whose names a state dict has, what is wrapped around them, and the way to our names and back."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import Tensor

from cvt.errors import UserError, remark
from cvt.systems.catalog import SYSTEMS
from cvt.systems.cvt import CVT
from cvt.systems.system import Layout, System

StateDict = dict[str, Tensor]
T = TypeVar("T")

MICROSOFT, TRANSFORMERS = CVT.layouts[:2]

_WRAPPERS = ("module.", "_orig_mod.", "timm_model.")
# Names that tell a network of ours: of stages, TNT, and timm's ResNet and EfficientNet.
_OURS = (
    "stages.0.embed.proj.weight",
    "word_embed.proj.weight",
    "layer1.0.conv1.weight",
    "conv_stem.weight",
)


def strip_wrappers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Removes what DistributedDataParallel, torch.compile and transformers put before all names.

    With torch's AveragedModel its counter goes too.
    """
    names = [name for name in state_dict if name != "n_averaged"]
    tensors = [state_dict[name] for name in names]
    for prefix in _WRAPPERS * 2:
        if names and all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, tensors, strict=True))


def is_network(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a known network, be it inside of another module."""
    names = strip_wrappers(state_dict).keys()
    return _is_known(names) or bool(_prefixes(names))


def below_prefix(state_dict: Mapping[str, Tensor], *, source: str) -> StateDict:
    """Returns the network that was an attribute of another module, such as Lightning's `model.`.

    What lies beside it is left out, which a remark says. Names that need no such thing, or
    where nothing helps, are returned as they are.
    """
    if _is_known(state_dict.keys()):
        return dict(state_dict)
    prefixes = _prefixes(state_dict.keys())
    if len(prefixes) > 1:
        raise UserError(
            f"{source} holds {len(prefixes)} networks, under the prefixes "
            f"{', '.join(map(repr, prefixes[:5]))}; expected one: save the one that you mean by "
            "itself, without its prefix."
        )
    if not prefixes:
        return dict(state_dict)
    (prefix,) = prefixes
    beside = [name for name in state_dict if not name.startswith(prefix)]
    if beside:
        remark(
            f"{source} holds more than the network under {prefix!r}: left out are {len(beside)} "
            f"tensors, the first {beside[0]!r}."
        )
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }


def _prefixes(names: Collection[str]) -> list[str]:
    """What stands before the names of known networks, the outermost where they nest."""
    fingerprints: list[tuple[str, ...]] = [(name,) for name in _OURS]
    fingerprints += [layout.fingerprint for system in SYSTEMS for layout in system.layouts]
    found = {
        prefix
        for first, *others in fingerprints
        for name in names
        if name.endswith(f".{first}")
        and (prefix := name.removesuffix(first)) is not None
        and all(prefix + other in names for other in others)
    }
    return sorted(each for each in found if not any(each.startswith(o) for o in found if o != each))


def to_microsoft(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Renames our state dict to the names of microsoft/CvT."""
    return MICROSOFT.from_ours(state_dict)


def to_hugging_face(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Renames our state dict to the names of transformers' `CvtForImageClassification`."""
    return TRANSFORMERS.from_ours(state_dict)


def to_ours(state_dict: Mapping[str, Tensor], *, source: str = "The state dict") -> StateDict:
    """Brings a state dict in any known layout to our names and shapes."""
    return identify(state_dict, source=source)[0]


def identify(
    state_dict: Mapping[str, Tensor], *, source: str
) -> tuple[StateDict, tuple[System, ...]]:
    """As `to_ours`, and says which systems have checkpoints in the layout, in catalogue order.

    Our own names leave all systems possible.
    """
    stripped = below_prefix(strip_wrappers(state_dict), source=source)
    if is_ours(stripped):
        return stripped, SYSTEMS
    layout = find_layout(stripped)
    if layout is not None:
        sharing = [system for system in SYSTEMS if layout in system.layouts]
        return layout.to_ours(stripped), tuple(sharing)
    shown = ", ".join(repr(name) for name in list(stripped)[:3]) or "no tensor at all"
    known = ", ".join(system.name for system in SYSTEMS if system.layouts)
    raise UserError(
        f"{source} is no checkpoint of a known network: got {shown}, expected the names of this "
        f"library, of microsoft/CvT or transformers' CvT, or those under which {known} were "
        "published, with at most one prefix before them all."
    )


def is_ours(names: Collection[str]) -> bool:
    """Whether these are this library's names, of whatever system."""
    return any(name in names for name in _OURS)


def find_layout(names: Collection[str]) -> Layout | None:
    """Returns the layout, of any system, that all its telling names are there of."""
    layouts = (layout for system in SYSTEMS for layout in system.layouts)
    return next((each for each in layouts if all(n in names for n in each.fingerprint)), None)


def _is_known(names: Collection[str]) -> bool:
    return is_ours(names) or find_layout(names) is not None
