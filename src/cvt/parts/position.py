"""Position embeddings that are added to tokens (CvT drops them; its Tables 5 and 6 ablate them)."""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from cvt.parts.grid import map_to_tokens, prefix_of, tokens_to_map


@register_notrace_module  # the choice between adding and interpolating is made outside fx graphs
class PositionTable(nn.Module):
    """A learned vector for each prefix token and grid position, added once to the tokens.

    At another grid than its own the grid part is interpolated (bicubic, antialiased), as ViT's
    is for fine-tuning at another resolution (arXiv 2010.11929, section 3.2).
    """

    def __init__(self, embed_dim: int, grid: tuple[int, int], num_prefix: int) -> None:
        super().__init__()
        self.grid = grid
        num_positions = num_prefix + grid[0] * grid[1]
        self.table = nn.Parameter(torch.zeros(1, num_positions, embed_dim))

    def forward(self, tokens: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
        return tokens + resize_table(self.table, self.grid, grid, num_prefix)

    def set_grid(self, grid: tuple[int, int], num_prefix: int) -> None:
        """Interpolates the table for good, so that training goes on at the new grid."""
        with torch.no_grad():
            self.table = nn.Parameter(resize_table(self.table, self.grid, grid, num_prefix))
        self.grid = grid


def resize_table(
    table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int
) -> Tensor:
    """Returns a table (1, P + H*W, C) interpolated from `grid` to `new_grid`; the prefix stays."""
    # An exported graph holds for all sizes, so there a symbolic one isn't compared.
    if all(isinstance(side, int) for side in new_grid) and tuple(new_grid) == tuple(grid):
        return table
    fmap = tokens_to_map(table, grid, num_prefix)
    resized = F.interpolate(fmap.float(), size=new_grid, mode="bicubic", antialias=True)
    return map_to_tokens(resized.to(table.dtype), prefix_of(table, num_prefix))
