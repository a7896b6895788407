"""Multi-head attention over tokens that three projections read (CvT, section 3.2, equation 2)."""

import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import Tensor, nn

from cvt.parts import Grid


class Attention(nn.Module):
    """Tokens (B, N, C) to tokens (B, Nq, C); queries and keys may differ in number.

    `scale` multiplies the logits and is always passed on: CvT's is `C ** -0.5`, not the
    `(C / num_heads) ** -0.5` that a fused kernel takes by default. `reduce` makes the tokens that
    both keys and values are read from; without it these are the queries' own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        q: nn.Module,
        k: nn.Module,
        v: nn.Module,
        scale: float,
        reduce: nn.Module | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.fused_attn = use_fused_attn()
        self.q, self.k, self.v = q, k, v
        self.reduce = reduce
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        q = split_heads(self.q(tokens, grid, num_prefix), self.num_heads)
        if self.reduce is not None:
            tokens = self.reduce(tokens, grid, num_prefix)
        k = split_heads(self.k(tokens, grid, num_prefix), self.num_heads)
        v = split_heads(self.v(tokens, grid, num_prefix), self.num_heads)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=self.scale)
        else:
            mixed = self.attn_drop(self._weights(q, k)) @ v
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def attention_map(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Tensor:
        """Returns the softmax weights (B, num_heads, Nq, Nkv) for this module's input."""
        q = split_heads(self.q(tokens, grid, num_prefix), self.num_heads)
        if self.reduce is not None:
            tokens = self.reduce(tokens, grid, num_prefix)
        return self._weights(q, split_heads(self.k(tokens, grid, num_prefix), self.num_heads))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Returns tokens (B, N, C) as (B, num_heads, N, C / num_heads)."""
    batch, num_tokens, _ = tokens.shape  # `unflatten` would make constants of them in a trace
    return tokens.reshape(batch, num_tokens, num_heads, -1).transpose(1, 2)
