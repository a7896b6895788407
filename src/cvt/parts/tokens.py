"""Between tokens and maps, without copying where the memory allows it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cvt.parts import Grid


class Gridded(NamedTuple):
    """What blocks and stages return: tokens (B, num_prefix + H*W, C) and their grid (H, W).

    What watches a layer's output for its gradient, as pytorch-grad-cam does, is led to the tokens.
    """

    tokens: Tensor
    grid: Grid

    @property
    def requires_grad(self) -> bool:
        """Whether the tokens do."""
        return self.tokens.requires_grad

    def register_hook(self, hook: Callable[[Tensor], Any]) -> Any:
        """Calls `hook` with the tokens' gradient."""
        return self.tokens.register_hook(hook)


def tokens_to_map(tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
    """Returns the grid tokens of (B, num_prefix + H*W, C) as a map (B, C, H, W).

    The map is a view whose memory is channels-last: convolutions take it as it is.
    """
    # A slice from zero would leave an alias in exported graphs that CoreML's converter rejects.
    on_grid = tokens[:, num_prefix:] if num_prefix else tokens
    # `unflatten` would make constants of the grid in a trace, which then fits one size of image.
    return on_grid.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def prefix_of(tokens: Tensor, num_prefix: int) -> Tensor | None:
    """Returns the leading tokens (B, num_prefix, C) off the grid, or None."""
    return tokens[:, :num_prefix] if num_prefix else None


def map_to_tokens(fmap: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Returns a map (B, C, H, W) as tokens (B, H*W, C), behind the prefix (B, P, C) if any."""
    tokens = fmap.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat((prefix, tokens), dim=1)
