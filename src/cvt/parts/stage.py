"""A stage: embed, prefix tokens, position, blocks at one resolution (CvT, figure 2a)."""

import torch
from torch import Tensor, nn

from cvt.parts import Grid
from cvt.parts.attention import Attention
from cvt.parts.block import Block, PooledSkip, recompute
from cvt.parts.embed import AttentionTokens, ConvEmbed, PerformerTokens
from cvt.parts.mlp import make_mlp
from cvt.parts.position import ConditionalPosition, PositionTable, SinusoidTable
from cvt.parts.projection import AvgProjection, ConvProjection, LinearProjection, SpatialReduction
from cvt.parts.spec import BackboneSpec, StageSpec
from cvt.parts.tokens import Gridded

_TABLES: dict[str, type[PositionTable]] = {"table": PositionTable, "sinusoid": SinusoidTable}


class Stage(nn.Module):
    """Map (B, C, H, W) to tokens (B, num_prefix + H'*W', embed_dim) and their grid.

    Args:
        whole: The network that it is a stage of.
        index: Its number there, from 0.
    """

    def __init__(self, whole: BackboneSpec, index: int) -> None:
        super().__init__()
        row = whole.stages[index]
        in_chans = whole.stages[index - 1].embed_dim if index else whole.in_chans
        grid = row.grid_after_embed(whole.incoming(whole.img_size)[index])
        self.num_prefix = whole.num_prefix[index]
        self.grad_checkpointing = False
        self.embed = _make_embed(row, whole, in_chans)
        is_distilled = self.num_prefix > int(row.cls_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, row.embed_dim)) if row.cls_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, row.embed_dim)) if is_distilled else None
        self.pos_embed: PositionTable | None = None
        if row.pos_embed in _TABLES:
            self.pos_embed = _TABLES[row.pos_embed](
                row.embed_dim, grid, self.num_prefix, whole.pos_interpolation
            )
        self.pos_drop = nn.Dropout(row.proj_drop_rate)
        self.blocks = nn.ModuleList(make_block(whole, index, block) for block in range(row.depth))
        num_pegs = min(row.peg_depth, row.depth) if row.pos_embed == "conditional" else 0
        self.pegs = nn.ModuleList(ConditionalPosition(row.embed_dim) for _ in range(num_pegs))
        init_stage(self)

    def forward(self, fmap: Tensor) -> Gridded:
        tokens, grid = self.start(fmap)
        for index in range(len(self.blocks)):
            tokens, grid = self.step(index, tokens, grid)
        return Gridded(tokens, grid)

    def start(self, fmap: Tensor) -> tuple[Tensor, Grid]:
        """Returns what the first block gets: embedded tokens behind their prefix, and the grid."""
        tokens, grid = self.embed(fmap)
        prefix = [each for each in (self.cls_token, self.dist_token) if each is not None]
        if prefix:
            prefix = [each.expand(tokens.shape[0], -1, -1) for each in prefix]
            tokens = torch.cat((*prefix, tokens), dim=1)
        if self.pos_embed is not None:
            tokens = self.pos_embed(tokens, grid, self.num_prefix)
        return self.pos_drop(tokens), grid

    def step(self, index: int, tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Returns what block number `index` makes of the tokens, and their grid."""
        block = self.blocks[index]
        if self.grad_checkpointing:
            tokens, grid = recompute(block, tokens, grid, self.num_prefix)
        else:
            tokens, grid = block(tokens, grid, self.num_prefix)
        if index < len(self.pegs):
            tokens = self.pegs[index](tokens, grid, self.num_prefix)
        return tokens, grid


def _make_embed(row: StageSpec, whole: BackboneSpec, in_chans: int) -> nn.Module:
    window = {"kernel": row.embed_kernel, "stride": row.embed_stride, "padding": row.embed_padding}
    if row.embed == "t2t":
        return AttentionTokens(in_chans, row.embed_dim, **window)
    if row.embed == "t2t_performer":
        return PerformerTokens(in_chans, row.embed_dim, **window)
    eps = whole.embed_norm_eps if row.embed_norm else None
    return ConvEmbed(in_chans, row.embed_dim, **window, norm_eps=eps)


def make_block(whole: BackboneSpec, stage: int, index: int) -> Block:
    """Builds block number `index` of a stage, with its share of the stochastic depth."""
    row = whole.stages[stage]
    dim = row.embed_dim
    q_stride = row.q_stride if index == 0 else 1
    scale_width = dim if whole.attn_scale == "dim" else dim // row.num_heads
    is_reduced = row.projection == "reduction" and row.kv_stride > 1
    attn = Attention(
        dim,
        row.num_heads,
        q=_make_projection(row, q_stride, is_query=True),
        k=_make_projection(row, row.kv_stride, is_query=False),
        v=_make_projection(row, row.kv_stride, is_query=False),
        scale=scale_width**-0.5,
        reduce=SpatialReduction(dim, ratio=row.kv_stride, norm_eps=whole.embed_norm_eps)
        if is_reduced
        else None,
        attn_drop_rate=row.attn_drop_rate,
        proj_drop_rate=row.proj_drop_rate,
    )
    return Block(
        dim,
        attn=attn,
        mlp=make_mlp(dim, row.mlp_ratio, whole.act_layer, row.proj_drop_rate),
        norm_eps=whole.norm_eps,
        drop_path_rate=whole.drop_path_rates()[stage][index],
        skip=PooledSkip(row.conv_kernel, q_stride) if q_stride > 1 else None,
    )


def _make_projection(row: StageSpec, stride: int, *, is_query: bool) -> nn.Module:
    if row.projection in ("linear", "reduction") or (row.projection == "avg" and is_query):
        return LinearProjection(row.embed_dim, bias=row.qkv_bias)
    projection = ConvProjection if row.projection == "conv" else AvgProjection
    return projection(row.embed_dim, kernel=row.conv_kernel, stride=stride, bias=row.qkv_bias)


def init_stage(stage: nn.Module) -> None:
    """Linear weights N(0, 0.02), their biases 0; convolutions keep torch's default.

    LayerNorm and BatchNorm already start at weight 1 and bias 0.

    Source: microsoft/CvT f851e68, lib/models/cls_cvt.py.
    """
    for module in stage.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in stage.named_parameters(recurse=True):
        if name in ("cls_token", "dist_token", "pos_embed.table"):
            nn.init.trunc_normal_(parameter, std=0.02)
