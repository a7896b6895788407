"""Tokens from a map: by a strided convolution, or T2T-ViT's soft split and token layer.

Sources: CvT, section 3.1 (ViT's patches are a convolution too); T2T-ViT, arXiv 2101.11986, section
3.1, and yitu-opensource/T2T-ViT 0f63dc9, models/t2t_vit.py, token_transformer.py and
token_performer.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt.parts import Grid
from cvt.parts.mlp import make_mlp
from cvt.parts.tokens import map_to_tokens


class ConvEmbed(nn.Module):
    """Map (B, C, H, W) to tokens (B, H'*W', embed_dim) and their grid.

    Windows overlap where the kernel is larger than the stride (equation 1 and the paragraph
    after it); with kernel equal to stride and no padding it is ViT's patch embedding.

    Args:
        norm_eps: Of the LayerNorm behind it; None: there is none.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        *,
        kernel: int,
        stride: int,
        padding: int,
        norm_eps: float | None,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel, stride, padding)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, fmap: Tensor) -> tuple[Tensor, Grid]:
        fmap = self.proj(fmap)
        return self.norm(map_to_tokens(fmap)), (fmap.shape[2], fmap.shape[3])


class TokensToToken(nn.Module):
    """Map (B, C, H, W) to tokens (B, H'*W', embed_dim) and their grid.

    The soft split makes a token of each window, which may overlap: all its C * kernel**2 numbers.
    The token layer mixes these and narrows them to `embed_dim`, so that its residual is what its
    values are; subclasses say how it mixes.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, *, kernel: int, stride: int, padding: int, bias: bool
    ) -> None:
        super().__init__()
        width = in_chans * kernel**2
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.norm1 = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, embed_dim, bias=bias) for _ in range(3))
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = make_mlp(embed_dim, 1.0, "gelu", 0.0)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns values (B, N, embed_dim) weighted by how well keys answer queries."""
        raise NotImplementedError

    def forward(self, fmap: Tensor) -> tuple[Tensor, Grid]:
        grid = (self._side(fmap.shape[2]), self._side(fmap.shape[3]))
        windows = F.unfold(fmap, self.kernel, padding=self.padding, stride=self.stride)
        tokens = self.norm1(windows.transpose(1, 2))
        v = self.v(tokens)
        tokens = v + self.proj_drop(self.proj(self.mix(self.q(tokens), self.k(tokens), v)))
        return tokens + self.mlp(self.norm2(tokens)), grid

    def _side(self, side: int) -> int:
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


class AttentionTokens(TokensToToken):
    """With full attention of one head; its scale is that of the incoming width."""

    def __init__(self, in_chans: int, embed_dim: int, **window: int) -> None:
        super().__init__(in_chans, embed_dim, **window, bias=False)
        self.scale = self.q.in_features**-0.5

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # One head, as an axis of its own: the fused kernels want four axes.
        q, k, v = (each.unsqueeze(1) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1)


class PerformerTokens(TokensToToken):
    """With a performer's linear attention over fixed random features (arXiv 2009.14794).

    These are a buffer, which nothing trains; the cost is N, not N**2. As the authors compute it:
    queries and keys are not scaled, and there are half as many features as channels, rows of the
    norm sqrt(embed_dim / 2), so that softmax attention is not what it estimates.
    """

    def __init__(self, in_chans: int, embed_dim: int, **window: int) -> None:
        super().__init__(in_chans, embed_dim, **window, bias=True)
        self.mlp.drop2 = nn.Dropout(0.1)
        self.proj_drop = nn.Dropout(0.1)
        num_features = embed_dim // 2
        self.w = nn.Buffer(torch.empty(num_features, embed_dim))
        if not self.w.is_meta:
            nn.init.orthogonal_(self.w)
            self.w.mul_(num_features**0.5)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self._features(q), self._features(k)
        total = q @ k.sum(dim=1).unsqueeze(2)
        return q @ (k.transpose(1, 2) @ v) / (total + 1e-8)

    def _features(self, tokens: Tensor) -> Tensor:
        half_norm = tokens.square().sum(dim=2, keepdim=True) / 2
        return (tokens @ self.w.t() - half_norm).exp() / self.w.shape[0] ** 0.5
