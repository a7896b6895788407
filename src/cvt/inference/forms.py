"""The inference forms: what takes the place of a network's modules in a copy for inference.

They compute what the training forms do, without what training alone needs, and have the switches
and places that the passes use (`cvt.inference.passes`). From the linear map up to the network.
"""

import copy
from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from cvt.inference import onednn
from cvt.inference.kernels.norm_projections import norm_projections, stack_taps
from cvt.parts.attention import Attention, split_heads
from cvt.parts.backbone import Backbone
from cvt.parts.block import Block, PooledSkip
from cvt.parts.embed import TokensToToken
from cvt.parts.model import check_image
from cvt.parts.position import PositionTable, resize_table
from cvt.parts.projection import AvgProjection, ConvProjection, LinearProjection
from cvt.parts.stage import Stage
from cvt.parts.tnt import TNT
from cvt.parts.tokens import map_to_tokens, tokens_to_map

# --- A linear map whose weight lies as oneDNN's matrix product reads it.


class PackedLinear(nn.Module):
    """Takes an `nn.Linear`'s place, and that of the activation behind it if oneDNN has it.

    torch's compiler takes no packed weight that it has not packed itself, so it leaves these calls
    alone; deploy without `pack` what is to be compiled.

    Args:
        linear: The linear map, on the CPU.
        activation: What is behind it; None: nothing.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module | None = None) -> None:
        super().__init__()
        known = onednn.activation_of(activation or nn.Identity())
        assert known is not None
        self.activation, self.algorithm = known
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight = _Packed(linear.weight.detach())

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return onednn.linear(x, self.weight.packed, self.bias, self.activation, self.algorithm)

    @torch.compiler.disable
    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Returns the linear map of x plus the residual, which is left as it is."""
        assert self.activation == "none"
        return onednn.linear_add(x, self.weight.packed, self.bias, residual)

    def extra_repr(self) -> str:
        """Returns the sizes, and the activation if there is one."""
        fused = "" if self.activation == "none" else f", {self.activation}"
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}{fused}"


class _Packed:
    """An opaque tensor, which torch can neither copy nor save: copies share it, files unpack it."""

    def __init__(self, weight: Tensor) -> None:
        self.packed = onednn.pack(weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Packed":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Packed, (self.packed.to_dense(),)


def add_linear(linear: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """Returns `linear(x) + residual`: in one pass where the weight is packed, else in place."""
    if isinstance(linear, PackedLinear):
        return linear.add(x, residual)
    return linear(x).add_(residual)


# --- MLP: no dropout, and the residual is handed in.


class MlpForm(nn.Module):
    """Tokens (..., C) to fc2(act(fc1(tokens))), onto the residual if one is given."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1 = cast("nn.Linear", mlp.fc1)
        self.act: nn.Module = mlp.act
        self.fc2 = cast("nn.Linear", mlp.fc2)

    def forward(self, tokens: Tensor, residual: Tensor | None = None) -> Tensor:
        hidden = self.act(self.fc1(tokens))
        return self.fc2(hidden) if residual is None else add_linear(self.fc2, hidden, residual)


# --- Tokens in parts along their axis: all together, or the prefix and the grid by themselves.

Parts = tuple[Tensor, ...]
"""`(tokens,)` of (B, P + N, C), or `(prefix, on_grid)` of (B, P, C) and (B, N, C)."""


def joined(parts: Parts) -> Tensor:
    """Returns the tokens (B, P + N, C): a copy if they are in two parts."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def prefix_and_grid(parts: Parts, num_prefix: int) -> tuple[Tensor | None, Tensor]:
    """Returns the prefix (B, P, C), None if there is none, and the grid's tokens (B, N, C)."""
    if len(parts) == 2:
        return parts[0], parts[1]
    (tokens,) = parts
    return (tokens[:, :num_prefix], tokens[:, num_prefix:]) if num_prefix else (None, tokens)


def behind(prefix: Tensor | None, tokens: Tensor) -> Tensor:
    """Returns the tokens with their prefix in front, if there is one."""
    return tokens if prefix is None else torch.cat((prefix, tokens), dim=1)


# --- Attention: always the fused kernel, tokens in one or two parts.

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

        def read(projection: Projection) -> Parts:
            """What its linear map gets, in the parts that came in."""
            if fmap is None or isinstance(projection, LinearProjection):
                return parts
            on_grid = map_to_tokens(projection.read(fmap))
            return (parts[0], on_grid) if len(parts) == 2 else (behind(prefix, on_grid),)

        reads = (prefix,) if only_prefix else read(self.q)
        queries = tuple(self.q.linear(part) for part in reads)
        # Keys and values are all in one tensor, since the fused kernel takes no other.
        if self.reduce is not None:
            reduced = self.reduce(joined(parts), grid, num_prefix)
            return queries, self.k.linear(reduced), self.v.linear(reduced)
        k, v = (each.linear(joined(read(each))) for each in (self.k, self.v))
        return queries, k, v

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (split_heads(each, self.num_heads) for each in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)


# --- Attention on a GPU: one kernel for the norm and the convolutions before it.
#
# In CvT's blocks q, k and v are read from the normalised tokens by three depthwise convolutions,
# and nothing else reads these tokens: so none of them need be written.


class KernelAttentionForm(AttentionForm):
    """Takes the place of a block's first norm and of its attention: tokens come as they are.

    With `only_prefix` the queries on the grid are read and dropped. The kernel holds what they are
    made of in any case; they cost 1 of the 2.5 units of traffic, in one block of the network.

    Args:
        norm: The first norm, with weight and bias.
        attention: Of three convolutions that `norm_projections` computes, which leave their
            projections.
    """

    taps: Tensor
    taps_bias: Tensor

    def __init__(self, norm: nn.LayerNorm, attention: AttentionForm) -> None:
        super().__init__(attention)
        self.norm = norm
        reads = [cast("ConvProjection", each) for each in (self.q, self.k, self.v)]
        q, k, v = (each.conv for each in reads)
        assert q.bias is not None
        assert k.bias is not None
        assert v.bias is not None
        taps, taps_bias = stack_taps((q.weight, k.weight, v.weight), (q.bias, k.bias, v.bias))
        self.register_buffer("taps", taps)
        self.register_buffer("taps_bias", taps_bias)
        self.strides = (q.stride[0], k.stride[0], v.stride[0])
        for each in reads:
            del each.conv

    @property
    def reads_grid(self) -> bool:
        """No projection does any more, and the kernel takes the prefix along."""
        return False

    def project(
        self, parts: Parts, grid: tuple[int, int], num_prefix: int, *, only_prefix: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """Returns q, k and v as the other form does, from tokens that are not normalised."""
        read, keys, values = norm_projections(
            joined(parts),
            grid,
            num_prefix,
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
            eps=self.norm.eps,
            taps=self.taps,
            bias=self.taps_bias,
            strides=self.strides,
        )
        queries: Parts = (read,)
        if only_prefix:
            queries = (read[:, :num_prefix],)
        elif len(parts) == 2:
            queries = (read[:, :num_prefix], read[:, num_prefix:])
        q = tuple(self.q.linear(each) for each in queries)
        return q, self.k.linear(keys), self.v.linear(values)


# --- Block: the training form's arithmetic, on tokens in one or two parts.
#
# A class token makes the grid's tokens a slice with gaps between the images of a batch, which a
# convolution copies before it reads it. So prefix and grid may travel as two tensors; what works on
# each token by itself (norm, MLP, residual) is then done on each part.

_FEWEST_SLICES = 3


class BlockForm(nn.Module):
    """Takes a `Block`'s place: x + attn(norm(x)), then x + mlp(norm(x)), residuals added in place.

    With `slice_bytes` a large MLP works on slices of the tokens whose hidden activations take so
    many bytes (the pass `slices`). With `only_prefix` the prefix tokens alone come out, and only
    they are computed, from all keys and values (the pass `class_token`).
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


# --- Stage.


class StageForm(nn.Module):
    """Map (B, C, H, W) to tokens, in one or two parts, and their grid.

    With `splits`, prefix and grid travel by themselves (the pass `channels_last`).
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.num_prefix = stage.num_prefix
        self.embed = stage.embed
        self.cls_token, self.dist_token = stage.cls_token, stage.dist_token
        self.pos_embed = stage.pos_embed
        self.blocks = stage.blocks
        self.pegs = stage.pegs
        self.splits = False

    @property
    def gains_from_splitting(self) -> bool:
        """Whether there is a prefix, and a block that wants the grid by itself."""
        blocks = (each for each in self.blocks if isinstance(each, BlockForm))
        return bool(self.num_prefix) and any(block.attn.reads_grid for block in blocks)

    def forward(self, fmap: Tensor) -> tuple[Parts, tuple[int, int]]:
        parts, grid = self._start(fmap)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, BlockForm)
            parts, grid = block.run(parts, grid, self.num_prefix)
            if index < len(self.pegs) and not block.only_prefix:
                *prefix, last = parts
                num_prefix = 0 if prefix else self.num_prefix
                parts = (*prefix, self.pegs[index](last, grid, num_prefix))
        return parts, grid

    def _start(self, fmap: Tensor) -> tuple[Parts, tuple[int, int]]:
        tokens, grid = self.embed(fmap)
        given: list[Tensor] = [
            each for each in (self.cls_token, self.dist_token) if each is not None
        ]
        parts: Parts = (tokens,)
        if given:
            prefix = torch.cat(given, dim=1).expand(tokens.shape[0], -1, -1)
            parts = (prefix, tokens) if self._pays(tokens) else (behind(prefix, tokens),)
        if self.pos_embed is not None:
            parts = _placed(self.pos_embed, parts, grid, self.num_prefix)
        return parts, grid

    def _pays(self, tokens: Tensor) -> bool:
        """Whether to let the prefix travel by itself: never in a graph, which has one form.

        In a batch of one the grid's tokens lie without gaps behind the prefix.
        """
        return self.splits and not torch.compiler.is_compiling() and tokens.shape[0] > 1


def _placed(position: PositionTable, parts: Parts, grid: tuple[int, int], num_prefix: int) -> Parts:
    """Adds the table, interpolated to the grid."""
    table = resize_table(position.table, position.grid, grid, num_prefix, position.mode)
    if len(parts) == 1:
        return (parts[0] + table,)
    return parts[0] + table[:, :num_prefix], parts[1] + table[:, num_prefix:]


# --- A network of stages.


class StagedForm(nn.Module):
    """Images (B, in_chans, H, W) to what `Backbone.forward` returns in eval mode.

    The last norm sees only what is pooled: it works on each token by itself.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.spec, self.in_chans = backbone.spec, backbone.in_chans
        self.global_pool = backbone.global_pool
        self.stages = nn.ModuleList(StageForm(cast("Stage", stage)) for stage in backbone.stages)
        self.norm: nn.Module = backbone.norm
        self.head: nn.Module = backbone.head
        self.head_dist: nn.Module | None = backbone.head_dist

    def forward(self, image: Tensor) -> Tensor:
        check_image(image, self.in_chans, self.spec)
        fmap = image
        *before, last = cast("list[StageForm]", self.stages)
        for stage in before:
            parts, grid = stage(fmap)
            fmap = tokens_to_map(prefix_and_grid(parts, stage.num_prefix)[1], grid, 0)
        parts, _ = last(fmap)
        if self.global_pool == "avg":
            return self.head(self.norm(prefix_and_grid(parts, last.num_prefix)[1]).mean(dim=1))
        if self.global_pool != "token":
            return self.head(self.norm(joined(parts)))
        if self.head_dist is None:
            return self.head(self.norm(parts[0][:, 0]))
        pair = self.norm(parts[0][:, :2])
        return (self.head(pair[:, 0]) + self.head_dist(pair[:, 1])) / 2


# --- From a model to its copy in these forms.


def inference_copy(model: nn.Module) -> nn.Module:
    """Returns a copy that shares nothing with the model: in eval mode, without hooks or gradients.

    Blocks stand in it as `BlockForm`s, which compute the same; a `Backbone` is a `StagedForm`. A
    copy of a model in half precision is in float32, so that the passes round once.
    """
    network = copy.deepcopy(model, _no_hooks(model)).eval().requires_grad_(False)
    first = next(network.parameters(), None)
    if first is not None and first.dtype in (torch.bfloat16, torch.float16):
        network.float()
    for module in list(network.modules()):
        if isinstance(module, Stage | TNT):
            module.grad_checkpointing = False
        for name, child in module.named_children():
            if isinstance(child, Block):
                setattr(module, name, _block_form(child))
        if isinstance(module, TokensToToken):
            module.register_module("mlp", MlpForm(module.mlp))
    return StagedForm(network) if isinstance(network, Backbone) else network


def _no_hooks(model: nn.Module) -> dict[int, object]:
    """What `deepcopy` takes for already copied: empty tables in the place of hooks."""
    return {
        id(table): OrderedDict()
        for module in model.modules()
        for name, table in vars(module).items()
        if name in ("_forward_hooks", "_forward_pre_hooks") and table
    }


def _block_form(block: Block) -> nn.Module:
    """A block with another mixer or MLP than those of `cvt.parts` runs as it is."""
    attn, mlp = block.attn, block.mlp
    if not isinstance(attn, Attention) or not isinstance(mlp, Mlp):
        return block
    if not all(isinstance(each, Projection) for each in (attn.q, attn.k, attn.v)):
        return block
    if not isinstance(mlp.norm, nn.Identity):
        return block
    return BlockForm(block, AttentionForm(attn), MlpForm(mlp))
