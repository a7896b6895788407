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
from cvt.parts.block import Block
from cvt.parts.embed import TokensToToken
from cvt.parts.model import check_image
from cvt.parts.position import resize_table
from cvt.parts.projection import AvgProjection, ConvProjection, LinearProjection
from cvt.parts.stage import Stage
from cvt.parts.tnt import TNT
from cvt.parts.tokens import map_to_tokens, tokens_to_map


class PackedLinear(nn.Module):
    """A linear map whose weight lies as oneDNN's matrix product reads it.

    It takes an `nn.Linear`'s place, and that of the activation behind it if oneDNN has it.
    torch's compiler takes no packed weight that it has not packed itself, so it leaves these calls
    alone; deploy without `pack` what is to be compiled.
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


class MlpForm(nn.Module):
    """Tokens (..., C) to fc2(act(fc1(tokens))), without dropout, onto a residual if it is given."""

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


Projection = LinearProjection | ConvProjection | AvgProjection


class AttentionForm(nn.Module):
    """Takes an `Attention`'s place, by the fused kernel; its projections are the same modules."""

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
            only_prefix: Compute the prefix tokens' queries alone.
        """
        queries, *rest = self.project(parts, grid, num_prefix, only_prefix=only_prefix)
        outputs = []
        for query, onto in zip(queries, residual, strict=True):
            q, k, v = (split_heads(each, self.num_heads) for each in (query, *rest))
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
            outputs.append(add_linear(self.proj, mixed.transpose(1, 2).flatten(2), onto))
        return tuple(outputs)

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
            read = projection.read(fmap)
            if len(parts) == 2:
                return parts[0], map_to_tokens(read)
            return (map_to_tokens(read, prefix),)

        reads = (prefix,) if only_prefix else read(self.q)
        queries = tuple(self.q.linear(part) for part in reads)
        # Keys and values are all in one tensor, since the fused kernel takes no other.
        if self.reduce is not None:
            reduced = self.reduce(joined(parts), grid, num_prefix)
            return queries, self.k.linear(reduced), self.v.linear(reduced)
        k, v = (each.linear(joined(read(each))) for each in (self.k, self.v))
        return queries, k, v


# --- Attention on a GPU: one kernel for the norm and the convolutions before it.
#
# In CvT's blocks q, k and v are read from the normalised tokens by three depthwise convolutions,
# and nothing else reads these tokens: so none of them need be written.


class KernelAttentionForm(AttentionForm):
    """Takes the place of a block's first norm and of its attention: tokens come as they are.

    The three convolutions leave the projections of the attention that is given. With `only_prefix`
    the queries on the grid are read and dropped. The kernel holds what they are made of in any
    case; they cost 1 of the 2.5 units of traffic, in one block of the network.
    """

    taps: Tensor
    taps_bias: Tensor

    def __init__(self, norm: nn.LayerNorm, attention: AttentionForm) -> None:
        super().__init__(attention)
        self.norm = norm
        reads = [cast("ConvProjection", each) for each in (self.q, self.k, self.v)]
        convs = [each.conv for each in reads]
        biases = [each.bias for each in convs if each.bias is not None]
        taps, taps_bias = stack_taps([each.weight for each in convs], biases)
        self.register_buffer("taps", taps)
        self.register_buffer("taps_bias", taps_bias)
        self.strides = cast("tuple[int, int, int]", tuple(each.stride[0] for each in convs))
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
        if only_prefix or len(parts) == 2:
            queries = (read[:, :num_prefix], read[:, num_prefix:])[: 1 if only_prefix else 2]
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
        elif self.skip is not None:  # the residual on the smaller grid of strided queries
            *prefixes, last = parts
            last, grid = self.skip(last, grid, 0 if prefixes else num_prefix)
            parts = (*prefixes, last)
        parts = self.attn(normed, parts, incoming, num_prefix, only_prefix=self.only_prefix)
        return tuple(self._feed_forward(part) for part in parts), grid

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        """The second half; the tokens are attention's, and may be overwritten."""
        count = 0
        # An exported graph has no slices, as it holds for all sizes.
        if self.slice_bytes and not torch.compiler.is_compiling():
            num_tokens = tokens.numel() // tokens.shape[-1]
            hidden = num_tokens * self.mlp.fc1.out_features * tokens.element_size()
            count = hidden // self.slice_bytes
        if count < _FEWEST_SLICES:
            return self.mlp(self.norm2(tokens), tokens)
        rows = tokens.reshape(-1, tokens.shape[-1])
        for piece in rows.chunk(count):
            piece.add_(self.mlp(self.norm2(piece)))
        return rows.view(tokens.shape)


class StageForm(nn.Module):
    """Map (B, C, H, W) to tokens, in one or two parts, and their grid.

    With `splits`, prefix and grid travel by themselves (the pass `channels_last`).
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.num_prefix, self.embed = stage.num_prefix, stage.embed
        self.cls_token, self.dist_token = stage.cls_token, stage.dist_token
        self.pos_embed, self.blocks, self.pegs = stage.pos_embed, stage.blocks, stage.pegs
        self.splits = False

    @property
    def gains_from_splitting(self) -> bool:
        """Whether there is a prefix, and a block that wants the grid by itself."""
        blocks = (each for each in self.blocks if isinstance(each, BlockForm))
        return bool(self.num_prefix) and any(block.attn.reads_grid for block in blocks)

    def forward(self, fmap: Tensor) -> tuple[Parts, tuple[int, int]]:
        parts, grid = self._embedded(fmap)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, BlockForm)
            parts, grid = block.run(parts, grid, self.num_prefix)
            if index < len(self.pegs) and not block.only_prefix:
                *prefixes, last = parts
                num_prefix = 0 if prefixes else self.num_prefix
                parts = (*prefixes, self.pegs[index](last, grid, num_prefix))
        return parts, grid

    def _embedded(self, fmap: Tensor) -> tuple[Parts, tuple[int, int]]:
        tokens, grid = self.embed(fmap)
        given = [each for each in (self.cls_token, self.dist_token) if each is not None]
        parts: Parts = (tokens,)
        if given:
            parts = (torch.cat(tuple(given), dim=1).expand(tokens.shape[0], -1, -1), tokens)
            # A graph has one form, and in a batch of one no gap is behind the prefix.
            if not self.splits or torch.compiler.is_compiling() or tokens.shape[0] == 1:
                parts = (joined(parts),)
        if self.pos_embed is None:
            return parts, grid
        at, p = self.pos_embed, self.num_prefix
        table = resize_table(at.table, at.grid, grid, p, at.mode)
        places = (table,) if len(parts) == 1 else (table[:, :p], table[:, p:])
        return tuple(part + place for part, place in zip(parts, places, strict=True)), grid


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


def inference_copy(model: nn.Module) -> nn.Module:
    """Returns a copy that shares nothing with the model: in eval mode, without hooks or gradients.

    Blocks stand in it as `BlockForm`s, which compute the same; a `Backbone` is a `StagedForm`. A
    copy of a model in half precision is in float32, so that the passes round once.
    """
    # Empty tables in the place of hooks, which deepcopy takes for copied already.
    names = ("_forward_hooks", "_forward_pre_hooks")
    hooks = [getattr(module, name) for module in model.modules() for name in names]
    memo: dict[int, object] = {id(table): OrderedDict() for table in hooks if table}
    network = copy.deepcopy(model, memo).eval().requires_grad_(False)
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


def _block_form(block: Block) -> nn.Module:
    """A block with another mixer or MLP than those of `cvt.parts` runs as it is."""
    attn, mlp = block.attn, block.mlp
    if not isinstance(attn, Attention) or not isinstance(mlp, Mlp):
        return block
    projections = (attn.q, attn.k, attn.v)
    if not all(isinstance(each, Projection) for each in projections):
        return block
    has_norm = not isinstance(mlp.norm, nn.Identity)
    return block if has_norm else BlockForm(block, AttentionForm(attn), MlpForm(mlp))
