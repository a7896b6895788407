"""Tokens from a map by a strided convolution (CvT, section 3.1; ViT's patches are one)."""

from torch import Tensor, nn

from cvt.parts.grid import map_to_tokens


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

    def forward(self, fmap: Tensor) -> tuple[Tensor, tuple[int, int]]:
        fmap = self.proj(fmap)
        return self.norm(map_to_tokens(fmap)), (fmap.shape[2], fmap.shape[3])
