"""Which row a bare state dict belongs to, judged by its shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cvt.errors import UserError
from cvt.parts.spec import BackboneSpec
from cvt.systems.cvt import ROWS


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What shapes tell of a network, one entry a stage; not strides, heads and activation."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    embed_kernels: tuple[int, ...]
    conv_kernels: tuple[int, ...]  # 0: no convolution reads the queries
    hidden: tuple[int, ...]
    cls_tokens: tuple[bool, ...]
    tables: tuple[bool, ...]

    def __str__(self) -> str:
        tokens = "/".join("yes" if each else "no" for each in self.cls_tokens)
        return (
            f"{len(self.dims)} stages of widths {_slashed(self.dims)} and depths "
            f"{_slashed(self.depths)}, embedding kernels {_slashed(self.embed_kernels)}, "
            f"projection kernels {_slashed(self.conv_kernels)}, class tokens {tokens}"
        )


def recognise_variant(state_dict: Mapping[str, Tensor], *, source: str) -> tuple[str, BackboneSpec]:
    """Returns the row that a state dict in our names belongs to, and its spec.

    The spec has the number of classes (0 without a head) and input channels of the tensors; what
    shapes don't tell, such as heads, strides and activation, is the row's.

    Args:
        source: Where the state dict comes from, for the message.

    Raises:
        UserError: It belongs to no row; the message says what was found.
    """
    check_whole(state_dict, source=source)
    found = _facts_of_tensors(state_dict)
    for name, row in ROWS.items():
        if _facts_of_row(row) == found:
            return name, row.change(
                num_classes=num_classes(state_dict),
                in_chans=state_dict["stages.0.embed.proj.weight"].shape[1],
            )
    raise UserError(
        f"{source} is none of {', '.join(ROWS)}: got {found}; expected the shapes of one of them, "
        "or a file that describes its model itself."
    )


def num_classes(state_dict: Mapping[str, Tensor]) -> int:
    """Returns how many classes the head tells apart; 0 without a head."""
    return state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 0


def check_whole(state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Refuses the stages alone.

    Raises:
        UserError: The final norm is missing, as in a bare `CvtModel` of transformers.
    """
    if "norm.weight" not in state_dict:
        raise UserError(
            f"{source} lacks norm.weight and norm.bias, the final norm: a bare CvtModel of "
            "transformers has neither it nor a classifier; expected a CvtForImageClassification."
        )


def _facts_of_tensors(state_dict: Mapping[str, Tensor]) -> _Facts:
    columns = []
    while (stem := f"stages.{len(columns)}.") + "embed.proj.weight" in state_dict:
        embed = state_dict[f"{stem}embed.proj.weight"]
        depth = 0
        while f"{stem}blocks.{depth}.norm1.weight" in state_dict:
            depth += 1
        conv = state_dict.get(f"{stem}blocks.0.attn.q.conv.weight")
        fc1 = state_dict.get(f"{stem}blocks.0.mlp.fc1.weight")
        columns.append(
            (
                embed.shape[0],
                depth,
                embed.shape[-1],
                0 if conv is None else conv.shape[-1],
                0 if fc1 is None else fc1.shape[0],
                f"{stem}cls_token" in state_dict,
                f"{stem}pos_embed.table" in state_dict,
            )
        )
    return _make_facts(columns)


def _facts_of_row(spec: BackboneSpec) -> _Facts:
    return _make_facts(
        [
            (
                stage.embed_dim,
                stage.depth,
                stage.embed_kernel,
                stage.conv_kernel if stage.projection == "conv" else 0,
                int(stage.embed_dim * stage.mlp_ratio),
                stage.cls_token,
                stage.pos_embed == "table",
            )
            for stage in spec.stages
        ]
    )


def _make_facts(columns: list[tuple]) -> _Facts:
    names = tuple(_Facts.__dataclass_fields__)
    transposed = zip(*columns, strict=True) if columns else [()] * len(names)
    return _Facts(**dict(zip(names, transposed, strict=True)))


def _slashed(numbers: tuple[int, ...]) -> str:
    return "/".join(map(str, numbers))
