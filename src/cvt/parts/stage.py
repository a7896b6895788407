"""A stage: embed, prefix token, position, blocks at one resolution (CvT, figure 2a)."""

import torch
from torch import Tensor, nn

from cvt.parts.attention import Attention
from cvt.parts.block import Block, PooledSkip
from cvt.parts.embed import ConvEmbed
from cvt.parts.mlp import make_mlp
from cvt.parts.position import PositionTable
from cvt.parts.projection import AvgProjection, ConvProjection, LinearProjection
from cvt.parts.recompute import recompute
from cvt.parts.spec import BackboneSpec, StageSpec


class Stage(nn.Module):
    """Map (B, C, H, W) to tokens (B, num_prefix + H'*W', embed_dim) and their grid.

    Args:
        row: This stage's choices.
        whole: The choices shared by all stages.
        in_chans: Channels of the incoming map.
        grid: The grid that a position table is made for.
    """

    def __init__(
        self, row: StageSpec, whole: BackboneSpec, in_chans: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.num_prefix = int(row.cls_token)
        self.grad_checkpointing = False
        self.embed = ConvEmbed(
            in_chans,
            row.embed_dim,
            kernel=row.embed_kernel,
            stride=row.embed_stride,
            padding=row.embed_padding,
            norm_eps=whole.norm_eps,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, row.embed_dim)) if row.cls_token else None
        self.pos_embed = (
            PositionTable(row.embed_dim, grid, self.num_prefix)
            if row.pos_embed == "table"
            else None
        )
        self.pos_drop = nn.Dropout(row.proj_drop_rate)
        self.blocks = nn.ModuleList(make_block(row, whole, index) for index in range(row.depth))

    def forward(self, fmap: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = self.embed(fmap)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        if self.pos_embed is not None:
            tokens = self.pos_embed(tokens, grid, self.num_prefix)
        tokens = self.pos_drop(tokens)
        for block in self.blocks:
            if self.grad_checkpointing:
                tokens, grid = recompute(block, tokens, grid, self.num_prefix)
            else:
                tokens, grid = block(tokens, grid, self.num_prefix)
        return tokens, grid


def make_block(row: StageSpec, whole: BackboneSpec, index: int) -> Block:
    """Builds the stage's block number `index`, with its share of the stage's stochastic depth."""
    dim = row.embed_dim
    q_stride = row.q_stride if index == 0 else 1
    scale_width = dim if whole.attn_scale == "dim" else dim // row.num_heads
    attn = Attention(
        dim,
        row.num_heads,
        q=_make_projection(row, q_stride, is_query=True),
        k=_make_projection(row, row.kv_stride, is_query=False),
        v=_make_projection(row, row.kv_stride, is_query=False),
        scale=scale_width**-0.5,
        attn_drop_rate=row.attn_drop_rate,
        proj_drop_rate=row.proj_drop_rate,
    )
    return Block(
        dim,
        attn=attn,
        mlp=make_mlp(dim, row.mlp_ratio, whole.act_layer, row.proj_drop_rate),
        norm_eps=whole.norm_eps,
        drop_path_rate=row.drop_path_rate * index / max(row.depth - 1, 1),
        skip=PooledSkip(row.conv_kernel, q_stride) if q_stride > 1 else None,
    )


def _make_projection(row: StageSpec, stride: int, *, is_query: bool) -> nn.Module:
    if row.projection == "linear" or (row.projection == "avg" and is_query):
        return LinearProjection(row.embed_dim, bias=row.qkv_bias)
    projection = ConvProjection if row.projection == "conv" else AvgProjection
    return projection(row.embed_dim, kernel=row.conv_kernel, stride=stride, bias=row.qkv_bias)
