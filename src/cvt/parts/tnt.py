"""TNT: two streams of tokens under timm's model contract, built from a `TNTSpec`."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt.parts.attention import Attention
from cvt.parts.block import Block, recompute
from cvt.parts.mlp import make_mlp
from cvt.parts.model import VisionModel, check_format, feature_take_indices, shape_intermediates
from cvt.parts.position import PositionTable
from cvt.parts.projection import LinearProjection
from cvt.parts.spec import TNTSpec
from cvt.parts.stage import init_stage
from cvt.parts.tokens import map_to_tokens, prefix_of, tokens_to_map

# --- TNT's layers: an image to words by patch, words to patches, the two-stream block.
#
# Source: TNT, arXiv 2103.00112, section 2; huawei-noah/CV-Backbones 25531f7, tnt_pytorch/tnt.py.


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


class TNT(VisionModel):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes).

    With `num_classes=0` the pooled features (B, num_features) come out; with `global_pool=''`
    as well, the normalised tokens (B, 1 + h*w, num_features). What is left over of an image
    beyond its whole patches, at the right and below, is not read.

    Source: TNT, arXiv 2103.00112, section 2; huawei-noah/CV-Backbones 25531f7,
    tnt_pytorch/tnt.py. Deviations: none in what is computed; the frozen `outer_tokens`, which
    the authors' forward pass never reads, are left out; any image size is taken.
    """

    spec: TNTSpec

    def __init__(self, spec: TNTSpec) -> None:
        super().__init__()
        (grid,) = spec.grids(spec.img_size)
        self.spec = spec
        self.num_classes = spec.num_classes
        self.in_chans = spec.in_chans
        self.global_pool = spec.global_pool
        self.num_features = self.head_hidden_size = spec.embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        self.word_embed = WordEmbed(
            spec.in_chans,
            spec.inner_dim,
            patch_size=spec.patch_size,
            kernel=spec.inner_kernel,
            stride=spec.inner_stride,
        )
        self.word_pos = PositionTable(spec.inner_dim, spec.word_grid, 0)
        self.patch_embed = _make_fold(spec, bias=True)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        self.pos_embed = PositionTable(spec.embed_dim, grid, 1)
        self.pos_drop = nn.Dropout(spec.pos_drop_rate)
        self.blocks = nn.ModuleList(make_tnt_block(spec, index) for index in range(spec.depth))
        self.norm = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)
        self.head_drop = nn.Dropout(spec.drop_rate)
        init_stage(self)
        nn.init.trunc_normal_(self.word_pos.table, std=0.02)
        self.head = self._make_head(spec.num_classes)
        self.feature_info = [
            {"num_chs": spec.embed_dim, "reduction": spec.patch_size, "module": f"blocks.{index}"}
            for index in range(spec.depth)
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Returns the class token and the patches, normalised: (B, 1 + h*w, num_features)."""
        words, tokens, grid = self._embed(image)
        for block in self.blocks:
            words, tokens = self._run(block, words, tokens, grid)
        return self.norm(tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools normalised tokens and classifies them; `pre_logits` stops before the classifier."""
        pooled = self.head_drop(self._pool(tokens))
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        return_prefix_tokens: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Returns the final tokens and the patches after each chosen block, (B, C, h, w).

        Args:
            x: Images (B, in_chans, H, W).
            indices: Blocks, or how many of the last ones; None: all.
            norm: Apply the final LayerNorm to every chosen map, as timm does where all are of
                one width.
            stop_early: Leave out the blocks after the last chosen one.
            output_fmt: `NCHW` maps, or `NLC` tokens without the class token.
            intermediates_only: Return the list alone.
            return_prefix_tokens: Pair each level with the class token (B, 1, C).
            output_dict: Return a dict, see `shape_intermediates`.

        Raises:
            UserError: Another `output_fmt`.
        """
        check_format(output_fmt)
        taken, last = feature_take_indices(len(self.blocks), indices)
        words, tokens, grid = self._embed(x)
        chosen: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if stop_early and index > last:
                break
            words, tokens = self._run(block, words, tokens, grid)
            if index in taken:
                chosen.append(self.norm(tokens) if norm else tokens)
        return shape_intermediates(
            self.norm(tokens),
            [tokens_to_map(kept, grid, 1) for kept in chosen],
            [prefix_of(kept, 1) for kept in chosen],
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            return_prefix_tokens=return_prefix_tokens,
            output_dict=output_dict,
        )

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the blocks behind the last chosen one; returns the chosen ones as indices."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Returns the last linear layer, or an identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh classifier in place (none for 0), and another pooling if one is named."""
        changes: dict[str, Any] = {"num_classes": num_classes}
        if global_pool is not None:
            changes["global_pool"] = global_pool
        self.spec = self.spec.change(**changes)
        self.num_classes, self.global_pool = num_classes, self.spec.global_pool
        self.head = self._make_head(num_classes).to(self.cls_token)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Interpolates the patches' position table to another image size (H, W)."""
        spec = self.spec.change(img_size=img_size)
        (grid,) = spec.grids(spec.img_size)
        self.spec = spec
        self.pos_embed.set_grid(grid, 1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay skips besides biases and norms: class token and tables.

        Source: huawei-noah/CV-Backbones 25531f7, tnt_pytorch/tnt.py, `no_weight_decay`.
        """
        return {"cls_token", "pos_embed.table", "word_pos.table"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into depth groups, for layer-wise learning rates."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {
            "stem": r"^(?:word_embed|word_pos|patch_embed|cls_token|pos_embed)",
            "blocks": blocks[:1] if coarse else blocks,
        }

    def _embed(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Words (B*h*w, words, inner_dim), tokens (B, 1 + h*w, embed_dim), the grid (h, w)."""
        self.check_image(image)
        words, grid = self.word_embed(image)
        words = self.word_pos(words, self.spec.word_grid, 0)
        patches = self.patch_embed(words, grid)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return words, self.pos_drop(self.pos_embed(tokens, grid, 1)), grid

    def _run(
        self, block: nn.Module, words: Tensor, tokens: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        if self.grad_checkpointing:
            return recompute(block, words, tokens, grid)
        return cast("TNTBlock", block)(words, tokens, grid)

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.global_pool == "token":
            return tokens[:, 0]
        return tokens[:, 1:].mean(dim=1) if self.global_pool == "avg" else tokens

    def _make_head(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        init_stage(head)
        return head


def make_tnt_block(spec: TNTSpec, index: int) -> TNTBlock:
    """Builds block number `index`, with its share of the network's stochastic depth.

    One rate holds for both streams; in the inner one a patch is dropped by itself, as in the
    authors' code, since each is a sample there.
    """
    both: dict[str, Any] = {
        "mlp_ratio": spec.mlp_ratio,
        "qkv_bias": spec.qkv_bias,
        "act_layer": spec.act_layer,
        "norm_eps": spec.norm_eps,
        "proj_drop_rate": spec.proj_drop_rate,
        "attn_drop_rate": spec.attn_drop_rate,
        "drop_path_rate": spec.drop_path_rate * index / max(spec.depth - 1, 1),
    }
    return TNTBlock(
        inner=make_plain_block(spec.inner_dim, spec.inner_heads, **both),
        fold=_make_fold(spec, bias=False),
        outer=make_plain_block(spec.embed_dim, spec.num_heads, **both),
        word_grid=spec.word_grid,
    )


def _make_fold(spec: TNTSpec, *, bias: bool) -> WordsToPatches:
    num_words = spec.word_grid[0] * spec.word_grid[1]
    return WordsToPatches(
        spec.inner_dim, num_words, spec.embed_dim, bias=bias, norm_eps=spec.norm_eps
    )
