"""Position encodings (CvT drops them; its Tables 5 and 6 ablate them)."""

import warnings

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts import Grid
from cvt.parts.tokens import map_to_tokens, prefix_of, tokens_to_map


@register_notrace_module  # the choice between adding and interpolating is made outside fx graphs
class PositionTable(nn.Module):
    """A learned vector for each prefix token and grid position, added once to the tokens.

    At another grid than its own the grid part is interpolated, as ViT's is for fine-tuning at
    another resolution (arXiv 2010.11929, section 3.2).

    Args:
        grid: The grid that the table is made for.
        mode: `bicubic` with antialiasing, as timm does it, `bicubic_no_antialias`, as T2T-ViT does,
            or `bilinear`, likewise without, as PVT does.
    """

    def __init__(self, embed_dim: int, grid: Grid, num_prefix: int, mode: str = "bicubic") -> None:
        super().__init__()
        self.grid = grid
        self.mode = mode
        num_positions = num_prefix + grid[0] * grid[1]
        self.table: Tensor = self.make_table(num_positions, embed_dim)

    def make_table(self, num_positions: int, embed_dim: int) -> Tensor:
        """Returns the table (1, num_positions, embed_dim) of a new network."""
        return nn.Parameter(torch.zeros(1, num_positions, embed_dim))

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        if self.mode == "bicubic" and torch.onnx.is_in_onnx_export() and torch.jit.is_tracing():
            return self._add_for_old_onnx(tokens, grid, num_prefix)
        return tokens + resize_table(self.table, self.grid, grid, num_prefix, self.mode)

    def set_grid(self, grid: Grid, num_prefix: int) -> None:
        """Interpolates the table for good, so that training goes on at the new grid."""
        with torch.no_grad():
            table = resize_table(self.table, self.grid, grid, num_prefix, self.mode)
        if isinstance(self.table, nn.Parameter):
            table = nn.Parameter(table, requires_grad=self.table.requires_grad)
        self.table = table
        self.grid = grid

    def _add_for_old_onnx(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        """Adds the table as it is: the old exporter has no antialiased interpolation.

        Map onto map, so that a grid of another shape fails in the file, were it as many tokens.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = int(grid[0]), int(grid[1])
        if traced != tuple(self.grid):
            raise UserError(
                f"Got a grid of {traced[0]}x{traced[1]} tokens for a position table of "
                f"{self.grid[0]}x{self.grid[1]}, which torch.onnx.export(dynamo=False) cannot "
                "resize; call set_input_size((height, width)) of the model first, or export with "
                "dynamo=True or `cvt export`."
            )
        fmap = tokens_to_map(tokens, grid, num_prefix)
        fmap = fmap + tokens_to_map(self.table, self.grid, num_prefix)
        prefix = prefix_of(tokens, num_prefix)
        if prefix is not None:
            prefix = prefix + self.table[:, :num_prefix]
        return map_to_tokens(fmap, prefix).reshape(tokens.shape)


@register_notrace_module
class SinusoidTable(PositionTable):
    """A table that is never trained, a buffer: sines at even and cosines at odd channels.

    Position p, the prefix counted in, has the angle p / 10000 ** (2 * (channel // 2) / C)
    (arXiv 1706.03762, section 3.5; T2T-ViT's frozen `pos_embed`).
    """

    def make_table(self, num_positions: int, embed_dim: int) -> Tensor:
        position = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1)
        channel = torch.arange(embed_dim, dtype=torch.float64)
        angle = position / 10000 ** (2 * (channel // 2) / embed_dim)
        table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
        return nn.Buffer(table.to(torch.get_default_dtype()).unsqueeze(0))


class ConditionalPosition(nn.Module):
    """CPVT's position encoding generator: what a token learns from its neighbours on the grid.

    A depthwise 3x3 convolution with bias, added to its input; the zeros around the grid are what
    tells a token where it is. Prefix tokens pass by.

    Source: arXiv 2102.10882, section 3.3; Meituan-AutoML/Twins, class `PosCNN`.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(embed_dim, embed_dim, 3, 1, 1, groups=embed_dim)

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        fmap = tokens_to_map(tokens, grid, num_prefix)
        return map_to_tokens(fmap + self.conv(fmap), prefix_of(tokens, num_prefix))


def resize_table(
    table: Tensor, grid: Grid, new_grid: Grid, num_prefix: int, mode: str = "bicubic"
) -> Tensor:
    """Returns a table (1, P + H*W, C) interpolated from `grid` to `new_grid`; the prefix stays."""
    # An exported graph holds for all sizes, so there a symbolic one isn't compared.
    if all(isinstance(side, int) for side in new_grid) and tuple(new_grid) == tuple(grid):
        return table
    fmap = tokens_to_map(table, grid, num_prefix)
    # Half precision is too coarse to interpolate in.
    fmap = fmap if fmap.dtype == torch.float64 else fmap.float()
    kernel = mode.removesuffix("_no_antialias")
    resized = F.interpolate(fmap, size=new_grid, mode=kernel, antialias=mode == "bicubic")
    return map_to_tokens(resized.to(table.dtype), prefix_of(table, num_prefix))
