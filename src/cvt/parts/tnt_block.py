"""TNT's layers: an image to words by patch, words to patches, the two-stream block.

Source: TNT, arXiv 2103.00112, section 2; huawei-noah/CV-Backbones 25531f7, tnt_pytorch/tnt.py.
"""

import torch
from torch import Tensor, nn

from cvt.parts.attention import Attention
from cvt.parts.block import Block
from cvt.parts.grid import map_to_tokens
from cvt.parts.mlp import make_mlp
from cvt.parts.projection import LinearProjection


class WordEmbed(nn.Module):
    """Image (B, C, H, W) to the words of each patch (B*h*w, words, dim), and the patch grid.

    The patches are cut out first, so that the convolution pads at the border of each and no word
    sees a neighbouring patch. A rest smaller than a patch, at the right and below, is not read.
    """

    def __init__(
        self, in_chans: int, dim: int, *, patch_size: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        side = self.patch_size
        if torch.jit.is_tracing():
            cut = self._cut_for_old_onnx(image)
        else:
            cut = image.unfold(2, side, side).unfold(3, side, side)
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return map_to_tokens(self.proj(patches)), (cut.shape[2], cut.shape[3])

    def _cut_for_old_onnx(self, image: Tensor) -> Tensor:
        """The same (B, C, h, w, side, side), where `unfold` would be for fixed sizes alone."""
        side, (batch, channels, height, width) = self.patch_size, image.shape
        grid = height // side, width // side
        whole = image[:, :, : grid[0] * side, : grid[1] * side]
        return whole.reshape(batch, channels, grid[0], side, grid[1], side).transpose(3, 4)


class WordsToPatches(nn.Module):
    """Words (B*N, words, dim) to tokens (B, N, embed_dim): concatenate, norm, linear map, norm.

    The first arXiv version normed each word by itself, had a bias here and no second norm.
    """

    def __init__(
        self, dim: int, num_words: int, embed_dim: int, *, bias: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(num_words * dim, eps=norm_eps)
        self.proj = nn.Linear(num_words * dim, embed_dim, bias=bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, words: Tensor, grid: tuple[int, int]) -> Tensor:
        by_image = words.reshape(-1, grid[0] * grid[1], words.shape[1] * words.shape[2])
        return self.norm2(self.proj(self.norm1(by_image)))


class TNTBlock(nn.Module):
    """A block on the words of each patch, their sum into the patches, a block on the patches.

    Args:
        inner: The block on the words.
        fold: What the words add to their patch.
        outer: The block on the class token and the patches.
        word_grid: The (H, W) of the words of a patch.
    """

    def __init__(
        self, *, inner: Block, fold: WordsToPatches, outer: Block, word_grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.inner, self.fold, self.outer = inner, fold, outer
        self.word_grid = word_grid

    def forward(
        self, words: Tensor, tokens: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        words, _ = self.inner(words, self.word_grid, 0)
        patches = tokens[:, 1:] + self.fold(words, grid)
        tokens, _ = self.outer(torch.cat((tokens[:, :1], patches), dim=1), grid, 1)
        return words, tokens


def make_plain_block(
    dim: int,
    num_heads: int,
    *,
    mlp_ratio: float,
    qkv_bias: bool,
    act_layer: str,
    norm_eps: float,
    proj_drop_rate: float,
    attn_drop_rate: float,
    drop_path_rate: float,
) -> Block:
    """Returns ViT's block: q, k and v by linear maps, logits scaled by `head_dim ** -0.5`."""
    attn = Attention(
        dim,
        num_heads,
        q=LinearProjection(dim, bias=qkv_bias),
        k=LinearProjection(dim, bias=qkv_bias),
        v=LinearProjection(dim, bias=qkv_bias),
        scale=(dim // num_heads) ** -0.5,
        attn_drop_rate=attn_drop_rate,
        proj_drop_rate=proj_drop_rate,
    )
    return Block(
        dim,
        attn=attn,
        mlp=make_mlp(dim, mlp_ratio, act_layer, proj_drop_rate),
        norm_eps=norm_eps,
        drop_path_rate=drop_path_rate,
    )
