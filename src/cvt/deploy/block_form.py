"""The inference form of a block: the training form's arithmetic, on tokens in one or two parts.

A class token makes the grid's tokens a slice with gaps between the images of a batch, which a
convolution copies before it reads it. So prefix and grid may travel as two tensors; what works on
each token by itself (norm, MLP, residual) is then done on each part.
"""

import torch
from torch import Tensor, nn

from cvt.deploy.attention_form import AttentionForm
from cvt.deploy.mlp_form import MlpForm
from cvt.deploy.token_parts import Parts, prefix_and_grid
from cvt.parts.block import Block, PooledSkip

_FEWEST_SLICES = 3


class BlockForm(nn.Module):
    """Takes a `Block`'s place: x + attn(norm(x)), then x + mlp(norm(x)), residuals added in place.

    With `slice_bytes` a large MLP works on slices of the tokens whose hidden activations take so
    many bytes (see `cvt.deploy.slices`). With `only_prefix` the prefix tokens alone come out, and
    only they are computed, from all keys and values (see `cvt.deploy.class_token`).
    """

    def __init__(self, block: Block, attn: AttentionForm, mlp: MlpForm) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, attn
        self.norm2, self.mlp = block.norm2, mlp
        self.skip = block.skip
        self.only_prefix = False
        self.slice_bytes = 0

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], num_prefix: int
    ) -> tuple[Tensor, tuple[int, int]]:
        """The call of the training form."""
        (tokens,), grid = self.run((tokens,), grid, num_prefix)
        return tokens, grid

    def run(
        self, parts: Parts, grid: tuple[int, int], num_prefix: int
    ) -> tuple[Parts, tuple[int, int]]:
        """Returns the tokens in the parts they came in (the prefix alone if so set), their grid."""
        normed = tuple(self.norm1(part) for part in parts)
        incoming = grid
        if self.only_prefix:
            prefix, _ = prefix_and_grid(parts, num_prefix)
            assert prefix is not None
            parts = (prefix,)
        elif self.skip is not None:
            parts, grid = _skipped(self.skip, parts, grid, num_prefix)
        parts = self.attn(normed, parts, incoming, num_prefix, only_prefix=self.only_prefix)
        return tuple(self._feed_forward(part) for part in parts), grid

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        """The second half; the tokens are attention's, and may be overwritten."""
        count = self._num_slices(tokens)
        if count < _FEWEST_SLICES:
            return self.mlp(self.norm2(tokens), tokens)
        rows = tokens.reshape(-1, tokens.shape[-1])
        for piece in rows.chunk(count):
            piece.add_(self.mlp(self.norm2(piece)))
        return rows.view(tokens.shape)

    def _num_slices(self, tokens: Tensor) -> int:
        """How many slices pay; an exported graph has none, as it holds for all sizes."""
        if not self.slice_bytes or torch.compiler.is_compiling():
            return 0
        num_tokens = tokens.numel() // tokens.shape[-1]
        hidden = num_tokens * self.mlp.fc1.out_features * tokens.element_size()
        return hidden // self.slice_bytes


def _skipped(
    skip: PooledSkip, parts: Parts, grid: tuple[int, int], num_prefix: int
) -> tuple[Parts, tuple[int, int]]:
    """The residual on the smaller grid of strided queries."""
    if len(parts) == 1:
        tokens, grid = skip(parts[0], grid, num_prefix)
        return (tokens,), grid
    on_grid, grid = skip(parts[1], grid, 0)
    return (parts[0], on_grid), grid
