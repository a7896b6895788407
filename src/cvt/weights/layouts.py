"""State-dict names: CvT's three layouts, one to one, and whatever layouts the systems have.

Source of CvT's: microsoft/CvT f851e68, lib/models/cls_cvt.py, and transformers' models/cvt.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, TypeVar

from torch import Tensor

from cvt.errors import UserError, remark
from cvt.systems.catalog import SYSTEMS
from cvt.systems.cvt import CVT
from cvt.systems.system import Layout as SystemLayout
from cvt.systems.system import System

Layout = Literal["cvt", "microsoft", "hugging_face"]
StateDict = dict[str, Tensor]
T = TypeVar("T")

_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_STAGE = ("stages.{}.", "stage{}.", "cvt.encoder.stages.{}.")
_BLOCK = ("blocks.{}.", "blocks.{}.", "layers.{}.")
_IN_TOP = (("norm", "norm", "layernorm"), ("head", "head", "classifier"))
_IN_STAGE = (
    ("embed.proj", "patch_embed.proj", "embedding.convolution_embeddings.projection"),
    ("embed.norm", "patch_embed.norm", "embedding.convolution_embeddings.normalization"),
    ("cls_token", "cls_token", "cls_token"),
)
_IN_BLOCK = (
    ("norm1", "norm1", "layernorm_before"),
    ("norm2", "norm2", "layernorm_after"),
    ("attn.proj", "attn.proj", "attention.output.dense"),
    ("mlp.fc1", "mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "mlp.fc2", "output.dense"),
)
_IN_QKV = (
    (
        "attn.{}.conv",
        "attn.conv_proj_{}.conv",
        "attention.attention.convolution_projection_{}.convolution_projection.convolution",
    ),
    (
        "attn.{}.bn",
        "attn.conv_proj_{}.bn",
        "attention.attention.convolution_projection_{}.convolution_projection.normalization",
    ),
    ("attn.{}.linear", "attn.proj_{}", "attention.attention.projection_{}"),
)
_QKV = (("q", "q", "query"), ("k", "k", "key"), ("v", "v", "value"))

# The numbers of stages and blocks; those of norm1 and fc2 belong to the name.
_INDEX = re.compile(r"(?<=^stage)\d+|(?<=\.)\d+(?=\.)")
_WRAPPERS = ("module.", "_orig_mod.", "timm_model.")
_FIRST: dict[str, Layout] = {
    "stages.0.embed.proj.weight": "cvt",
    "word_embed.proj.weight": "cvt",  # TNT
    "layer1.0.conv1.weight": "cvt",  # ResNet and EfficientNet, whose names are timm's
    "conv_stem.weight": "cvt",
    "stage0.patch_embed.proj.weight": "microsoft",
    "cvt.encoder.stages.0.embedding.convolution_embeddings.projection.weight": "hugging_face",
    "encoder.stages.0.embedding.convolution_embeddings.projection.weight": "hugging_face",
}


def name_table() -> list[tuple[str, str, str]]:
    """Returns every module's name as (ours, Microsoft's, Hugging Face's), `{}` for each index."""
    in_block = list(_IN_BLOCK)
    for piece in _IN_QKV:
        in_block += [_join(piece, letters, "format") for letters in _QKV]
    rows = list(_IN_TOP)
    rows += [_join(_STAGE, piece) for piece in _IN_STAGE]
    rows += [_join(_join(_STAGE, _BLOCK), piece) for piece in in_block]
    return rows


def recognise(state_dict: Iterable[str]) -> Layout | None:
    """Returns which of CvT's layouts these names are in, judged by the first embedding's weight.

    `cvt` is the layout of this library, whatever the system; None: it is none of the three.
    """
    names = set(state_dict)
    for name, layout in _FIRST.items():
        if name in names:
            return layout
    return None


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
    return recognise(names) is not None or find_layout(names) is not None or bool(_prefixes(names))


def below_prefix(state_dict: Mapping[str, Tensor], *, source: str) -> StateDict:
    """Returns the network that was an attribute of another module, such as Lightning's `model.`.

    What lies beside it is left out, which a remark says. Names that need no such thing, or
    where nothing helps, are returned as they are.

    Args:
        source: Where the state dict comes from, for the message.

    Raises:
        UserError: There are several networks.
    """
    if recognise(state_dict) or find_layout(state_dict.keys()):
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
    tellings: list[tuple[tuple[str, ...], tuple[str, ...]]] = [((name,), ()) for name in _FIRST]
    tellings += [(each.fingerprint, each.absent) for system in SYSTEMS for each in system.layouts]
    found = {
        name.removesuffix(fingerprint[0])
        for fingerprint, absent in tellings
        for name in names
        if name.endswith(f".{fingerprint[0]}")
        and _fits(names, fingerprint, absent, name.removesuffix(fingerprint[0]))
    }
    return sorted(each for each in found if not any(each.startswith(o) for o in found if o != each))


def _fits(
    names: Collection[str], fingerprint: Iterable[str], absent: Iterable[str], prefix: str = ""
) -> bool:
    return all(prefix + name in names for name in fingerprint) and not any(
        prefix + name in names for name in absent
    )


def from_microsoft(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Renames a state dict of microsoft/CvT to our names; a `module.` prefix is removed.

    Raises:
        UserError: A name has no counterpart.
    """
    return _rename(strip_wrappers(state_dict), 1, 0, "Microsoft's layout")


def to_microsoft(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Renames our state dict to the names of microsoft/CvT.

    Raises:
        UserError: A name has no counterpart, such as a position table's.
    """
    return _rename(state_dict, 0, 1, "our layout")


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Renames a state dict of transformers' `CvtForImageClassification` to our names.

    A bare `CvtModel` is renamed as well; it lacks `norm.*` and `head.*`, so that only the stages
    come out.

    Raises:
        UserError: A name has no counterpart.
    """
    whole = {
        f"cvt.{name}" if name.startswith("encoder.") else name: tensor
        for name, tensor in strip_wrappers(state_dict).items()
    }
    return _rename(whole, 2, 0, "Hugging Face's layout")


def to_hugging_face(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Renames our state dict to the names of transformers' `CvtForImageClassification`.

    Raises:
        UserError: A name has no counterpart, such as a position table's.
    """
    return _rename(state_dict, 0, 2, "our layout")


def to_ours(state_dict: Mapping[str, Tensor], *, source: str = "The state dict") -> StateDict:
    """Brings a state dict in any known layout to our names and shapes.

    Args:
        source: Where it comes from, for the message.

    Raises:
        UserError: It is in no known layout, or a name has no counterpart.
    """
    return identify(state_dict, source=source)[0]


def identify(
    state_dict: Mapping[str, Tensor], *, source: str
) -> tuple[StateDict, tuple[System, ...]]:
    """As `to_ours`, and says which systems have checkpoints in the layout, in catalogue order.

    Our own names leave all systems possible. CvT's three layouts are looked for first.

    Args:
        source: Where it comes from, for the message.

    Raises:
        UserError: As `to_ours`.
    """
    stripped = below_prefix(strip_wrappers(state_dict), source=source)
    layout = recognise(stripped)
    if layout == "cvt":
        return stripped, SYSTEMS
    if layout == "microsoft":
        return from_microsoft(stripped), (CVT,)
    if layout == "hugging_face":
        return from_hugging_face(stripped), (CVT,)
    of_system = find_layout(stripped)
    if of_system is not None:
        sharing = [system for system in SYSTEMS if of_system in system.layouts]
        return of_system.to_ours(stripped), tuple(sharing)
    shown = ", ".join(repr(name) for name in list(stripped)[:3]) or "no tensor at all"
    known = ", ".join(system.name for system in SYSTEMS if system.layouts)
    raise UserError(
        f"{source} is no checkpoint of a known network: got {shown}, expected the names of this "
        f"library, of microsoft/CvT or transformers' CvT, or those under which {known} were "
        "published, with at most one prefix before them all."
    )


def find_layout(names: Collection[str]) -> SystemLayout | None:
    """Returns the layout of a system other than CvT in which all its telling names are there."""
    for system in SYSTEMS:
        for layout in system.layouts:
            if _fits(names, layout.fingerprint, layout.absent):
                return layout
    return None


def _rename(state_dict: Mapping[str, Tensor], old: int, new: int, where: str) -> StateDict:
    table = {row[old]: row[new] for row in name_table()}
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        to = _translate(name, table)
        if to is None:
            unknown.append(name)
        else:
            renamed[to] = tensor
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"Got {', '.join(map(repr, unknown[:3]))}{more} in {where}, expected only names of "
            "CvT's own parts; these have no counterpart in the other layout."
        )
    return renamed


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    template = _INDEX.sub("{}", name)
    indices = _INDEX.findall(name)
    if template.endswith(".cls_token"):
        return table[template].format(*indices) if template in table else None
    stem, _, leaf = template.rpartition(".")
    if leaf not in _LEAVES or stem not in table or stem.endswith(".cls_token"):
        return None
    return f"{table[stem]}.{leaf}".format(*indices)


def _join(
    left: tuple[str, str, str], right: tuple[str, str, str], how: str = "append"
) -> tuple[str, str, str]:
    if how == "format":
        ours, microsoft, hugging_face = (a.format(b) for a, b in zip(left, right, strict=True))
    else:
        ours, microsoft, hugging_face = (a + b for a, b in zip(left, right, strict=True))
    return ours, microsoft, hugging_face
