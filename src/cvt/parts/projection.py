"""How q, k and v are read from the grid (CvT, section 3.2; the rows of its Table 8).

Each projection takes `(tokens, grid, num_prefix)` and returns tokens `(B, num_prefix + h*w, C)`.
Prefix tokens are never convolved: they skip to the linear map, as in the reference.
"""

from torch import Tensor, nn

from cvt.parts import Grid
from cvt.parts.tokens import map_to_tokens, prefix_of, tokens_to_map


class LinearProjection(nn.Module):
    """ViT's position-wise linear map."""

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=bias)

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        return self.linear(tokens)


class _GridProjection(nn.Module):
    """Reads the grid with `read`, then maps grid and prefix tokens linearly."""

    linear: nn.Linear

    def read(self, fmap: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        fmap = self.read(tokens_to_map(tokens, grid, num_prefix))
        return self.linear(map_to_tokens(fmap, prefix_of(tokens, num_prefix)))


class ConvProjection(_GridProjection):
    """Depthwise convolution, BatchNorm, linear map (section 3.2.1, figure 3b and 3c)."""

    def __init__(self, dim: int, *, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, stride, kernel // 2, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        self.linear = nn.Linear(dim, dim, bias=bias)

    def read(self, fmap: Tensor) -> Tensor:
        return self.bn(self.conv(fmap))


class AvgProjection(_GridProjection):
    """Average pooling, linear map: the reference's `avg` method, which rounds the grid up."""

    def __init__(self, dim: int, *, kernel: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, stride, kernel // 2, ceil_mode=True)
        self.linear = nn.Linear(dim, dim, bias=bias)

    def read(self, fmap: Tensor) -> Tensor:
        return self.pool(fmap)


class SpatialReduction(nn.Module):
    """The coarser grid that PVT's keys and values share: a patch convolution, then LayerNorm.

    Tokens (B, P + H*W, C) to (B, P + h*w, C); prefix tokens, of which PVT has none there, skip
    the convolution.

    Source: arXiv 2102.12122, section 3.3; whai362/PVT 57e2dfa, classification/pvt.py.
    """

    def __init__(self, dim: int, *, ratio: int, norm_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        fmap = self.conv(tokens_to_map(tokens, grid, num_prefix))
        return self.norm(map_to_tokens(fmap, prefix_of(tokens, num_prefix)))
