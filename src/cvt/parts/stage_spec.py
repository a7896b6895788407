"""One stage as plain data: a row of the paper's Table 1, field by field."""

import math
from dataclasses import dataclass
from typing import Literal

from cvt.errors import UserError
from cvt.parts.spec_checks import Depth, Kernel, Padding, Rate, Ratio, Width, check_heads
from cvt.plain import check_values

Embed = Literal["conv", "t2t", "t2t_performer"]
Projection = Literal["conv", "avg", "linear", "reduction"]
Position = Literal["none", "table", "sinusoid", "conditional"]


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: how tokens are embedded, and the blocks that they pass (paper Tables 1 and 2).

    `embed` is a convolution, or T2T-ViT's soft split and token layer (arXiv 2101.11986, section
    3.1) with full attention (`t2t`) or a performer's (`t2t_performer`); a patch embedding is a
    convolution whose kernel equals its stride, without padding. `embed_norm` puts a LayerNorm
    behind the convolution. A stage of depth 0 is its embedding alone.

    `projection` says how q, k and v are read from the grid: `conv` is the paper's depthwise
    convolution, BatchNorm and linear map; `avg` pools k and v before the linear map; `linear` is
    the position-wise map of ViT, to which kernel and strides do not apply; `reduction` is PVT's,
    which reads k and v from a convolution of kernel and stride `kv_stride` (arXiv 2102.12122,
    section 3.3). `q_stride` above 1 makes the first block read its queries at that stride, so
    that the stage's grid shrinks (MViT, arXiv 2104.11227).

    `pos_embed` is a learned `table`, a frozen `sinusoid`, or `conditional`: CPVT's depthwise
    convolution behind each of the first `peg_depth` blocks (arXiv 2102.10882, section 3.3).
    `drop_path_rate` is reached at the stage's last block, linearly from 0 at its first, unless
    the backbone's schedule says otherwise.
    """

    embed_dim: Width
    depth: Depth
    num_heads: Width
    embed: Embed = "conv"
    embed_kernel: Kernel = 3
    embed_stride: Kernel = 2
    embed_padding: Padding = 1
    embed_norm: bool = True
    mlp_ratio: Ratio = 4.0
    projection: Projection = "conv"
    conv_kernel: Kernel = 3
    q_stride: Kernel = 1
    kv_stride: Kernel = 2
    qkv_bias: bool = True
    cls_token: bool = False
    pos_embed: Position = "none"
    peg_depth: Width = 1
    proj_drop_rate: Rate = 0.0
    attn_drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0

    def __post_init__(self) -> None:
        check_values(self, "a stage")
        check_heads(self)
        if self.projection in ("conv", "avg") and self.conv_kernel % 2 == 0:
            raise UserError(f"conv_kernel={self.conv_kernel} must be odd to keep the grid.")
        if self.projection != "conv" and self.q_stride > 1:
            raise UserError(
                f"q_stride={self.q_stride} needs projection='conv', got {self.projection!r}."
            )

    def grid_after_embed(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) that the embedding makes of a map of this size."""
        return _conv_grid(size, self.embed_kernel, self.embed_stride, self.embed_padding)

    def grid_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) that leaves the stage for a map of this size."""
        grid = self.grid_after_embed(size)
        if self.q_stride == 1:
            return grid
        return _conv_grid(grid, self.conv_kernel, self.q_stride, self.conv_kernel // 2)

    def kv_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) of keys and values read from a grid of this size."""
        if self.projection == "linear":
            return grid
        if self.projection == "reduction":
            return _conv_grid(grid, self.kv_stride, self.kv_stride, 0)
        return _conv_grid(
            grid,
            self.conv_kernel,
            self.kv_stride,
            self.conv_kernel // 2,
            ceil=self.projection == "avg",
        )

    def min_side(self, side: int) -> int:
        """Returns the least side of the incoming map that leaves one of at least `side`."""
        side = (side - 1) * self.q_stride + 1
        if self.projection == "reduction" and self.depth:
            side = max(side, self.kv_stride)
        window = (side - 1) * self.embed_stride + self.embed_kernel
        return max(window - 2 * self.embed_padding, 1)


def _conv_grid(
    size: tuple[int, int], kernel: int, stride: int, padding: int, ceil: bool = False
) -> tuple[int, int]:
    """Output size of a convolution or pooling, as torch computes it; 0 or less: none."""

    def side(n: int) -> int:
        span = n + 2 * padding - kernel
        if not ceil:
            return span // stride + 1
        out = math.ceil(span / stride) + 1
        return out - 1 if (out - 1) * stride >= n + padding else out

    return side(size[0]), side(size[1])
