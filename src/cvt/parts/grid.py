"""Between tokens and maps, without copying where the memory allows it."""

import torch
from torch import Tensor


def tokens_to_map(tokens: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
    """Returns the grid tokens of (B, num_prefix + H*W, C) as a map (B, C, H, W).

    The map is a view whose memory is channels-last: convolutions take it as it is.
    """
    # A slice from zero would leave an alias in exported graphs that CoreML's converter rejects.
    on_grid = tokens[:, num_prefix:] if num_prefix else tokens
    return on_grid.transpose(1, 2).unflatten(2, grid)


def prefix_of(tokens: Tensor, num_prefix: int) -> Tensor | None:
    """Returns the leading tokens (B, num_prefix, C) off the grid, or None."""
    return tokens[:, :num_prefix] if num_prefix else None


def map_to_tokens(fmap: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Returns a map (B, C, H, W) as tokens (B, H*W, C), behind the prefix (B, P, C) if any."""
    tokens = fmap.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat((prefix, tokens), dim=1)
