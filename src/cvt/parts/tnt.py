"""TNT: an image to words by patch, words to patches, and blocks on both streams of tokens.

Source: TNT, arXiv 2103.00112, section 2; huawei-noah/CV-Backbones 25531f7, tnt_pytorch/tnt.py.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvt.parts import Grid
from cvt.parts.attention import Attention
from cvt.parts.block import Block, recompute
from cvt.parts.mlp import make_mlp
from cvt.parts.model import Levels, VisionModel
from cvt.parts.position import PositionTable
from cvt.parts.projection import LinearProjection
from cvt.parts.spec import TNTSpec
from cvt.parts.stage import init_stage
from cvt.parts.tokens import map_to_tokens, prefix_of, tokens_to_map


class WordEmbed(nn.Module):
    """Image (B, C, H, W) to the words of each patch (B*h*w, words, inner_dim), and the patch grid.

    The patches are cut out first, so that the convolution pads at the border of each and no word
    sees a neighbouring patch. A rest smaller than a patch, at the right and below, is not read.
    """

    def __init__(self, spec: TNTSpec) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        kernel = spec.inner_kernel
        self.proj = nn.Conv2d(spec.in_chans, spec.inner_dim, kernel, spec.inner_stride, kernel // 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Grid]:
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
    """Words (B*N, words, C) to tokens (B, N, embed_dim): concatenate, norm, linear map, norm.

    The first arXiv version normed each word by itself, had a bias here and no second norm.
    """

    def __init__(self, spec: TNTSpec, *, bias: bool) -> None:
        super().__init__()
        width = spec.word_grid[0] * spec.word_grid[1] * spec.inner_dim
        self.norm1 = nn.LayerNorm(width, eps=spec.norm_eps)
        self.proj = nn.Linear(width, spec.embed_dim, bias=bias)
        self.norm2 = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)

    def forward(self, words: Tensor, grid: Grid) -> Tensor:
        by_image = words.reshape(-1, grid[0] * grid[1], words.shape[1] * words.shape[2])
        return self.norm2(self.proj(self.norm1(by_image)))


class TNTBlock(nn.Module):
    """A block on the words of each patch, their sum into the patches, a block on the patches.

    One rate of stochastic depth holds for both streams; in the inner one a patch is dropped by
    itself, as in the authors' code, since each is a sample there.
    """

    def __init__(self, spec: TNTSpec, drop_path_rate: float) -> None:
        super().__init__()
        self.inner = _make_stream(spec, spec.inner_dim, spec.inner_heads, drop_path_rate)
        self.fold = WordsToPatches(spec, bias=False)
        self.outer = _make_stream(spec, spec.embed_dim, spec.num_heads, drop_path_rate)
        self.word_grid = spec.word_grid

    def forward(self, words: Tensor, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        words, _ = self.inner(words, self.word_grid, 0)
        patches = tokens[:, 1:] + self.fold(words, grid)
        tokens, _ = self.outer(torch.cat((tokens[:, :1], patches), dim=1), grid, 1)
        return words, tokens


class TNT(VisionModel):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes), see `VisionModel`.

    What is left over of an image beyond its whole patches, at the right and below, is not read.

    Deviations from the authors: none in what is computed; the frozen `outer_tokens`, which their
    forward pass never reads, are left out; any image size is taken.
    """

    spec: TNTSpec

    def __init__(self, spec: TNTSpec) -> None:
        (grid,) = spec.grids(spec.img_size)
        super().__init__(spec, num_features=spec.embed_dim, num_prefix_tokens=1)
        self.grad_checkpointing = False
        self.word_embed = WordEmbed(spec)
        self.word_pos = PositionTable(spec.inner_dim, spec.word_grid, 0)
        self.patch_embed = WordsToPatches(spec, bias=True)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        self.pos_embed = PositionTable(spec.embed_dim, grid, 1)
        self.pos_drop = nn.Dropout(spec.pos_drop_rate)
        rates = (spec.drop_path_rate * each / max(spec.depth - 1, 1) for each in range(spec.depth))
        self.blocks = nn.ModuleList(TNTBlock(spec, rate) for rate in rates)
        self.norm = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)
        self.head_drop = nn.Dropout(spec.drop_rate)
        init_stage(self)
        nn.init.trunc_normal_(self.word_pos.table, std=0.02)
        self.head = self._make_head()
        self.feature_info = [
            {"num_chs": spec.embed_dim, "reduction": spec.patch_size, "module": f"blocks.{index}"}
            for index in range(spec.depth)
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        words, tokens, grid = self._embed(image)
        for block in self.blocks:
            words, tokens = self._run(block, words, tokens, grid)
        return self.norm(tokens)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {
            "stem": r"^(?:word_embed|word_pos|patch_embed|cls_token|pos_embed)",
            "blocks": blocks[:1] if coarse else blocks,
        }

    def _embed(self, image: Tensor) -> tuple[Tensor, Tensor, Grid]:
        """Words (B*h*w, words, inner_dim), tokens (B, 1 + h*w, embed_dim), the grid (h, w)."""
        self.check_image(image)
        words, grid = self.word_embed(image)
        words = self.word_pos(words, self.spec.word_grid, 0)
        patches = self.patch_embed(words, grid)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return words, self.pos_drop(self.pos_embed(tokens, grid, 1)), grid

    def _run(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
        return recompute(block, *inputs) if self.grad_checkpointing else block(*inputs)

    def _walk(self, image: Tensor, last: int, norm: bool) -> tuple[Tensor, Levels]:
        found: Levels = []
        words, tokens, grid = self._embed(image)
        for block in list(self.blocks)[: last + 1]:
            words, tokens = self._run(block, words, tokens, grid)
            shown = self.norm(tokens) if norm else tokens
            found.append((tokens_to_map(shown, grid, 1), prefix_of(shown, 1)))
        return self.norm(tokens), found

    def _cut_behind(self, last: int) -> None:
        self.blocks = self.blocks[: last + 1]

    def _make_head(self) -> nn.Module:
        """Here the bias starts at 0, as the authors' does."""
        head = super()._make_head()
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.bias)
        return head


def _make_stream(spec: TNTSpec, dim: int, num_heads: int, drop_path_rate: float) -> Block:
    """ViT's block: q, k and v by linear maps, logits scaled by `head_dim ** -0.5`."""
    q, k, v = (LinearProjection(dim, bias=spec.qkv_bias) for _ in range(3))
    attn = Attention(
        dim,
        num_heads,
        q=q,
        k=k,
        v=v,
        scale=(dim // num_heads) ** -0.5,
        attn_drop_rate=spec.attn_drop_rate,
        proj_drop_rate=spec.proj_drop_rate,
    )
    return Block(
        dim,
        attn=attn,
        mlp=make_mlp(dim, spec.mlp_ratio, spec.act_layer, spec.proj_drop_rate),
        norm_eps=spec.norm_eps,
        drop_path_rate=drop_path_rate,
    )
