"""Tokens in parts along their axis: all together, or the prefix and the grid by themselves."""

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]
"""`(tokens,)` of (B, P + N, C), or `(prefix, on_grid)` of (B, P, C) and (B, N, C)."""


def joined(parts: Parts) -> Tensor:
    """Returns the tokens (B, P + N, C): a copy if they are in two parts."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def prefix_and_grid(parts: Parts, num_prefix: int) -> tuple[Tensor | None, Tensor]:
    """Returns the prefix (B, P, C), None if there is none, and the grid's tokens (B, N, C)."""
    if len(parts) == 2:
        return parts[0], parts[1]
    (tokens,) = parts
    return (tokens[:, :num_prefix], tokens[:, num_prefix:]) if num_prefix else (None, tokens)


def behind(prefix: Tensor | None, tokens: Tensor) -> Tensor:
    """Returns the tokens with their prefix in front, if there is one."""
    return tokens if prefix is None else torch.cat((prefix, tokens), dim=1)
