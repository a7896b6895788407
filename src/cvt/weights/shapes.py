"""What the shapes of a state dict in our names tell of a network of stages, in short."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ShapeFacts:
    """What shapes tell of a network, one entry a stage; not strides, heads and activation."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    embed_kernels: tuple[int, ...]  # 0: no convolution embeds
    conv_kernels: tuple[int, ...]  # 0: no convolution reads the queries
    cls_tokens: tuple[bool, ...]

    def __str__(self) -> str:
        tokens = "/".join("yes" if each else "no" for each in self.cls_tokens)
        return (
            f"{len(self.dims)} stages of widths {_slashed(self.dims)} and depths "
            f"{_slashed(self.depths)}, embedding kernels {_slashed(self.embed_kernels)}, "
            f"projection kernels {_slashed(self.conv_kernels)}, class tokens {tokens}"
        )


def facts_of_tensors(state_dict: Mapping[str, Tensor]) -> ShapeFacts:
    """Reads the facts off a state dict; all are empty if it has no stages."""
    columns = []
    while (stem := f"stages.{len(columns)}.") + "embed.proj.weight" in state_dict:
        embed = state_dict[f"{stem}embed.proj.weight"]
        depth = 0
        while f"{stem}blocks.{depth}.norm1.weight" in state_dict:
            depth += 1
        conv = state_dict.get(f"{stem}blocks.0.attn.q.conv.weight")
        columns.append(
            (
                embed.shape[0] if embed.ndim else 0,
                depth,
                embed.shape[-1] if embed.ndim == 4 else 0,
                0 if conv is None or not conv.ndim else conv.shape[-1],
                f"{stem}cls_token" in state_dict,
            )
        )
    return _make_facts(columns)


def _make_facts(columns: list[tuple]) -> ShapeFacts:
    names = tuple(ShapeFacts.__dataclass_fields__)
    transposed = zip(*columns, strict=True) if columns else [()] * len(names)
    return ShapeFacts(**dict(zip(names, transposed, strict=True)))


def _slashed(numbers: tuple[int, ...]) -> str:
    return "/".join(map(str, numbers))
