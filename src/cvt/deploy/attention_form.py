"""The inference form of attention: always the fused kernel, tokens in one or two parts."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from cvt.deploy.packed_linear import add_linear
from cvt.deploy.token_parts import Parts, behind, joined, prefix_and_grid
from cvt.parts.attention import Attention, split_heads
from cvt.parts.grid import map_to_tokens, tokens_to_map
from cvt.parts.projection import AvgProjection, ConvProjection, LinearProjection

Projection = LinearProjection | ConvProjection | AvgProjection


class AttentionForm(nn.Module):
    """Takes an `Attention`'s place; its projections are the same modules."""

    def __init__(self, attention: "Attention | AttentionForm") -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.scale = attention.scale
        self.q, self.k, self.v = (
            cast("Projection", each) for each in (attention.q, attention.k, attention.v)
        )
        self.reduce = attention.reduce
        self.proj = attention.proj

    @property
    def reads_grid(self) -> bool:
        """Whether a projection reads a token's neighbours, and so wants the grid by itself."""
        return any(not isinstance(each, LinearProjection) for each in (self.q, self.k, self.v))

    def forward(
        self,
        parts: Parts,
        residual: Parts,
        grid: tuple[int, int],
        num_prefix: int,
        *,
        only_prefix: bool = False,
    ) -> Parts:
        """Returns the residual plus attention, in the residual's parts.

        Args:
            parts: The normalised tokens, all of which are keys and values.
            residual: What it is added to: the prefix alone if `only_prefix`.
            grid: The (H, W) of the tokens.
            num_prefix: How many of them lead the grid.
            only_prefix: Compute the prefix tokens' queries alone.
        """
        queries, k, v = self.project(parts, grid, num_prefix, only_prefix=only_prefix)
        return tuple(
            add_linear(self.proj, self._mix(q, k, v), onto)
            for q, onto in zip(queries, residual, strict=True)
        )

    def project(
        self, parts: Parts, grid: tuple[int, int], num_prefix: int, *, only_prefix: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """Returns q, in the parts that came in or of the prefix alone, and k and v of all."""
        prefix, on_grid = prefix_and_grid(parts, num_prefix)
        fmap = tokens_to_map(on_grid, grid, 0) if self.reads_grid else None
        read = _Reading(parts, prefix, fmap)
        if only_prefix:
            assert prefix is not None
            queries: Parts = (self.q.linear(prefix),)
        else:
            queries = tuple(self.q.linear(part) for part in read.queries(self.q))
        if self.reduce is not None:
            read = _Reading((self.reduce(joined(parts), grid, num_prefix),), None, None)
        return queries, self.k.linear(read.keys(self.k)), self.v.linear(read.keys(self.v))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (split_heads(each, self.num_heads) for each in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)


class _Reading:
    """What the projections of one attention read: tokens as they are, or maps beside a prefix."""

    def __init__(self, parts: Parts, prefix: Tensor | None, fmap: Tensor | None) -> None:
        self.parts, self.prefix, self.fmap = parts, prefix, fmap

    def queries(self, projection: Projection) -> Parts:
        """What the linear map of a projection gets, in the parts that came in."""
        if self.fmap is None or isinstance(projection, LinearProjection):
            return self.parts
        on_grid = map_to_tokens(projection.read(self.fmap))
        if len(self.parts) == 2:
            return self.parts[0], on_grid
        return (behind(self.prefix, on_grid),)

    def keys(self, projection: Projection) -> Tensor:
        """The same for keys and values: all in one tensor, since the kernel takes no other."""
        if self.fmap is None or isinstance(projection, LinearProjection):
            return joined(self.parts)
        return behind(self.prefix, map_to_tokens(projection.read(self.fmap)))
