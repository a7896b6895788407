"""Every pass that `cvt.deploy` makes over a network, in the order in which they are made.

Each rewrites a network of inference forms (`cvt.inference.forms`) in place, and returns in how many
places it did; its algebra stands above it. The tables at the end name them, as `without` does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cvt.errors import UserError, did_you_mean
from cvt.inference import onednn
from cvt.inference.forms import (
    AttentionForm,
    BlockForm,
    KernelAttentionForm,
    MlpForm,
    PackedLinear,
    StagedForm,
    StageForm,
)
from cvt.inference.kernels import compiles_kernels
from cvt.parts.embed import AttentionTokens, TokensToToken
from cvt.parts.mlp import QuickGELU
from cvt.parts.projection import ConvProjection, LinearProjection
from cvt.parts.tnt import TNT, TNTBlock, WordsToPatches

Pass = Callable[[nn.Module], int]


def everywhere(rewrite: Pass) -> Pass:
    """Makes what rewrites one module, and counts where, a pass over all modules of a network."""

    @wraps(rewrite)
    def apply(network: nn.Module) -> int:
        return sum(rewrite(module) for module in list(network.modules()))

    return apply


# --- What the algebra does to linear maps: they take over a factor or an affine map, in float64.


def scale_output(linear: nn.Linear, factor: float) -> None:
    """Makes it return `factor` times as much: s (W x + b) = (s W) x + s b."""
    _set(linear.weight, linear.weight.double() * factor)
    if linear.bias is not None:
        _set(linear.bias, linear.bias.double() * factor)


def scale_input(linear: nn.Linear, factor: float) -> None:
    """Makes it read its input as `factor` times as much: W (s x) + b = (s W) x + b."""
    _set(linear.weight, linear.weight.double() * factor)


def take_affine(linears: Iterable[nn.Linear], weight: Tensor, bias: Tensor | None) -> None:
    """Makes linear maps read x as `weight * x + bias`, both (in_features,).

    W (g * x + h) + b = (W diag(g)) x + (b + W h).
    """
    for linear in linears:
        if bias is not None:
            add_to_bias(linear, linear.weight.double() @ bias.double())
        _set(linear.weight, linear.weight.double() * weight.double())


def add_to_bias(linear: nn.Linear, more: Tensor) -> None:
    """Makes a linear map return `more` (out_features,) on top, with a new bias if it has none."""
    if linear.bias is None:
        linear.bias = nn.Parameter(more.to(linear.weight.dtype), requires_grad=False)
    else:
        _set(linear.bias, linear.bias.double() + more)


def _set(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


# --- batchnorm: BatchNorm goes into the convolution before it.
#
# With running statistics m and s**2, BatchNorm is affine in each channel: g (y - m) / s + h. Behind
# y = w * x (a convolution without bias, here depthwise) that is (g / s) w * x + (h - g m / s): a
# convolution with another kernel and a bias. The zeros around the map stay zeros under the factor,
# and the bias is added behind the convolution, so the border is exact as well.


def fold_batchnorm(network: nn.Module) -> int:
    """Folds every BatchNorm that stands right behind a convolution; returns how many."""
    count = 0
    for module in network.modules():
        if isinstance(module, ConvProjection) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.register_module("bn", nn.Identity())
            count += 1
    if any(_is_foldable(module) for module in network.modules()):
        count += _fold_traced(network)
    return count


def _fold_traced(network: nn.Module) -> int:
    """For networks that are not ours (timm's): pairs are read off the traced graph."""
    try:
        graph = _Tracer().trace(network)
    except Exception:  # control flow that depends on the images, or whatever else fx cannot trace
        return 0
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    count = 0
    for node in graph.nodes:
        pair = _pair(network, node)
        if pair is None or called.count(node.target) > 1 or called.count(pair) > 1:
            continue
        conv, bn = network.get_submodule(pair), network.get_submodule(node.target)
        network.set_submodule(pair, fuse_conv_bn_eval(conv, bn))  # ty: ignore[invalid-argument-type]
        # timm's norm has its activation inside.
        network.set_submodule(node.target, getattr(bn, "act", nn.Identity()))
        count += 1
    return count


def _pair(network: nn.Module, node: fx.Node) -> str | None:
    """The name of the convolution that only this BatchNorm reads, if the node is one."""
    if node.op != "call_module" or not _is_foldable(network.get_submodule(str(node.target))):
        return None
    before = node.args[0]
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return None
    name = str(before.target)
    return name if type(network.get_submodule(name)) is nn.Conv2d else None


def _is_foldable(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and isinstance(module.running_mean, torch.Tensor)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


# --- norm_affine: the affine part of a LayerNorm goes into the linear maps behind it.
#
# LayerNorm is g * n(x) + h, where n subtracts the mean and divides by the deviation. A linear map
# that reads nothing else takes g and h over: W (g * n + h) + b = (W diag(g)) n + (b + W h). This
# holds for a block's second norm and the MLP's first map; for its first norm if q, k and v are
# plain linear maps; for the norm of PVT's reduction and k and v; for the two norms of T2T's token
# layer; for the first norm of TNT's words-to-patches map; for the last norm and the classifiers,
# behind the mean of tokens as well, which commutes with a factor and a sum.
#
# A depthwise convolution cannot take them: it sees zeros, not h, outside the map, and the class
# token does not pass through it.


def fold_norm_affine(network: nn.Module) -> int:
    """Folds every such norm and leaves one without weight and bias; returns how many."""
    places = [place for module in network.modules() for place in _norms_within(module)]
    # The last norm is read by the network's own call alone; a network inside another may be asked
    # for more.
    if isinstance(network, StagedForm | TNT):
        heads = (network.head, getattr(network, "head_dist", None))
        places.append((network, "norm", tuple(each for each in heads if each is not None)))
    return sum(_fold_norm(*place) for place in places)


def _norms_within(module: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[nn.Module, ...]]]:
    """A module, the name of a norm in it, and all that reads this norm."""
    if isinstance(module, BlockForm):
        yield module, "norm2", (module.mlp.fc1,)
        attn = module.attn
        projections = (attn.q, attn.k, attn.v)
        if attn.reduce is None and all(isinstance(each, LinearProjection) for each in projections):
            yield module, "norm1", tuple(each.linear for each in projections)
    elif isinstance(module, AttentionForm) and module.reduce is not None:
        yield module.reduce, "norm", (module.k.linear, module.v.linear)
    elif isinstance(module, TokensToToken):
        yield module, "norm1", (module.q, module.k, module.v)
        yield module, "norm2", (module.mlp.fc1,)
    elif isinstance(module, WordsToPatches):
        yield module, "norm1", (module.proj,)


def _fold_norm(module: nn.Module, name: str, readers: tuple[nn.Module, ...]) -> bool:
    norm = getattr(module, name)
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine:
        return False
    if not all(isinstance(reader, nn.Linear) for reader in readers):
        return False
    take_affine(cast("tuple[nn.Linear, ...]", readers), norm.weight, norm.bias)
    shape = list(norm.normalized_shape)
    setattr(module, name, nn.LayerNorm(shape, eps=norm.eps, elementwise_affine=False))
    return True


# --- attention_scale: the scale of the logits goes into the queries.
#
# softmax(s (W x + b) K^T) = softmax(((s W) x + s b) K^T): a linear map takes the factor over, and
# the kernel is called with the factor 1.


@everywhere
def fold_attention_scale(module: nn.Module) -> int:
    """Folds the scale of a softmax attention."""
    if not isinstance(module, AttentionForm | AttentionTokens) or module.scale == 1.0:
        return 0
    scale_output(module.q if isinstance(module, AttentionTokens) else module.q.linear, module.scale)
    module.scale = 1.0
    return 1


# --- attention_biases: k's bias is dropped, v's goes into the output projection's.
#
# A bias c of the keys adds q c to all logits of the query q, and softmax does not see what is added
# to all: exp(l + q c) / sum exp(l + q c) = exp(l) / sum exp(l). A bias d of the values comes out as
# it is, because the weights a of a query sum to 1: sum a (v + d) = sum a v + d; side by side the
# heads' shares of d are d again, so that the output projection's bias becomes b + W d.


@everywhere
def fold_attention_biases(module: nn.Module) -> int:
    """Removes the biases of k and v of an attention."""
    if not isinstance(module, AttentionForm):
        return 0
    k, v, proj = module.k.linear, module.v.linear, module.proj
    if v.bias is not None:
        add_to_bias(proj, proj.weight.double() @ v.bias.double())
    had_some = k.bias is not None or v.bias is not None
    for linear in (k, v):
        linear.register_parameter("bias", None)
    return int(had_some)


# --- quick_gelu: QuickGELU becomes a SiLU, and activations work in place.
#
# x sigmoid(a x) = silu(a x) / a, with a = 1.702. The first linear map of the MLP takes the factor a
# over, the second the factor 1 / a; between them a plain SiLU works in the memory it reads.

_FACTOR = 1.702


@everywhere
def fold_quick_gelu(module: nn.Module) -> int:
    """Rewrites the activation of an MLP that has one to rewrite."""
    if not isinstance(module, MlpForm):
        return 0
    if isinstance(module.act, QuickGELU):
        scale_output(module.fc1, _FACTOR)
        scale_input(module.fc2, 1 / _FACTOR)
        module.act = nn.SiLU(inplace=True)
        return 1
    if isinstance(module.act, nn.SiLU | nn.ReLU) and not module.act.inplace:
        module.act = type(module.act)(inplace=True)
        return 1
    return 0


# --- class_token: the last block computes the class token alone.
#
# A classifier that reads the class token reads nothing that the last block makes of the others.
# They are keys and values of its attention, so the first norm, k and v see all tokens; the queries,
# the output projection, the second norm and the MLP work on each token by itself, and are computed
# for the prefix alone: the class token, and the distillation token where there is one. A position
# encoding generator behind that block changes grid tokens only, and falls away.


def compute_class_token_only(network: nn.Module) -> int:
    """Rewrites the last block where the class token alone is pooled; returns 1 there, else 0."""
    if not isinstance(network, StagedForm | TNT) or network.global_pool != "token":
        return 0
    if isinstance(network, TNT):
        blocks = [cast("TNTBlock", each).outer for each in network.blocks]
    else:
        blocks = list(cast("StageForm", network.stages[-1]).blocks)
    if not blocks or not isinstance(blocks[-1], BlockForm):
        return 0
    blocks[-1].only_prefix = True
    return 1


# --- channels_last: tokens and maps become two views of the same memory.
#
# Tokens (B, N, C) without gaps are a channels-last map (B, C, H, W). Kernels in that layout make
# the convolutions write it, also the first, which reads images that are not in it; so the norm
# behind an embedding and the linear map behind a depthwise convolution read what was written,
# uncopied.
#
# A prefix leaves a gap between the images of a batch, and each of the three convolutions would copy
# the map to close it, and the linear maps' inputs would be copied to put the prefix in front. Where
# convolutions read the tokens the prefix travels by itself; only keys and values, of which there
# are few at stride 2, are put together for attention.


@everywhere
def keep_channels_last(module: nn.Module) -> int:
    """Lays out the kernel of a convolution; lets a stage that gains from it split."""
    if isinstance(module, nn.Conv2d):
        module.to(memory_format=torch.channels_last)
        return 1
    if isinstance(module, StageForm):
        module.splits = module.gains_from_splitting
        return int(module.splits)
    return 0


# --- kernels: on GPUs one kernel computes the first norm and the three convolutions behind it.
#
# The same sums as LayerNorm and the convolutions with BatchNorm in them, see
# `cvt.inference.kernels.norm_projections`, which also has the traffic that this saves. In half
# precision they are rounded once, at the end, and not behind the norm as well.
#
# It is for blocks whose q, k and v are all read by 3x3 convolutions of stride 1 or 2 without
# BatchNorm, in float32, bf16 and fp16; others stay as they are. So do all blocks where kernels
# can't be compiled (`cvt.inference.kernels`).
#
# The kernel takes prefix tokens along, in and out. So where `channels_last` has let the prefix
# travel by itself, to spare the convolutions a copy, tokens travel in one tensor again: two would
# have to be joined in front of each kernel.


def use_norm_kernels(network: nn.Module) -> int:
    """Puts the kernel into every block that it serves; returns how many there are."""
    count = 0
    for block in network.modules():
        if isinstance(block, BlockForm) and _serves(block):
            block.attn = KernelAttentionForm(block.norm1, block.attn)
            block.register_module("norm1", nn.Identity())
            count += 1
    for stage in network.modules():
        if isinstance(stage, StageForm) and stage.splits:
            stage.splits = stage.gains_from_splitting
    return count


def _serves(block: BlockForm) -> bool:
    attn, norm = block.attn, block.norm1
    # Where the kernel already is, its attention has the norm.
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine or attn.reduce is not None:
        return False
    is_served = all(_is_for_kernel(each) for each in (attn.q, attn.k, attn.v))
    return is_served and compiles_kernels(norm.weight.dtype, norm.weight.device)


def _is_for_kernel(projection: nn.Module) -> bool:
    """Whether it is a convolution that the kernel computes; ours are depthwise, and padded."""
    if not isinstance(projection, ConvProjection) or not isinstance(projection.bn, nn.Identity):
        return False
    conv = projection.conv
    return conv.kernel_size == (3, 3) and conv.stride in ((1, 1), (2, 2))


# --- slices: on CPUs large MLPs work on slices of the tokens.
#
# An MLP works on each token by itself, and its hidden activations are wider than the tokens (four
# times in CvT). Where they do not fit into the caches they go to memory and come back, twice, for
# the activation between the maps; a slice of tokens at a time they stay. The sums are the same
# ones, and the most memory that the network takes falls with it: at 384 pixels the first stage's
# hidden activations are 9.4 MB an image in float32.
#
# Measured on two Zen 3 cores with 32 MB of third-level cache, CvT-13 at batch 16, GFLOP/s of norm,
# MLP and residual, whole and in slices of 8 MB: 45 and 67 in stage 1, 100 and 106 in stage 2; in
# stage 3, whose 19 MB fit, 131 and 129.

_SLICE = 8 * 2**20  # bytes of hidden activations


@everywhere
def slice_mlps(block: nn.Module) -> int:
    """Lets a block on a CPU slice its MLP; what makes fewer than three slices stays whole."""
    if not isinstance(block, BlockForm) or block.mlp.fc1.weight.device.type != "cpu":
        return 0
    block.slice_bytes = _SLICE
    return 1


# --- pack: on CPUs weights are packed for the matrix product, which also does what follows it.
#
# oneDNN reads a weight in blocks; the plain call brings it into blocks each time. The product also
# applies the activation, and adds the residual, while its result is still in the cache: the same
# sums, one trip through memory less. Float64, other devices, and CPUs on which the plain product is
# faster (`onednn.packing_pays`) are left alone.

_LINEARS: dict[type[nn.Module], tuple[str, ...]] = {
    AttentionForm: ("q.linear", "k.linear", "v.linear", "proj"),
    MlpForm: ("fc1", "fc2"),
    TokensToToken: ("q", "k", "v", "proj"),
    WordsToPatches: ("proj",),
    StagedForm: ("head", "head_dist"),
    TNT: ("head",),
}


@everywhere
def pack_linears(module: nn.Module) -> int:
    """Packs the linear maps of a module of ours, on a CPU that can."""
    ours = (names for kind, names in _LINEARS.items() if isinstance(module, kind))
    return sum(_pack(module, name) for names in ours for name in names)


def _pack(module: nn.Module, name: str) -> bool:
    path, _, own = name.rpartition(".")
    parent = module.get_submodule(path)
    linear = getattr(parent, own)
    if type(linear) is not nn.Linear or linear.weight.device.type != "cpu":
        return False
    if not onednn.can_pack(linear.weight.dtype) or not onednn.packing_pays(linear.weight.dtype):
        return False
    activation = None
    if isinstance(parent, MlpForm) and own == "fc1" and onednn.activation_of(parent.act):
        activation, parent.act = parent.act, nn.Identity()
    setattr(parent, own, PackedLinear(linear, activation))
    return True


# --- Their order, and the names that `without` takes.

# Algebra on the weights, in the model's own precision.
ALGEBRA: dict[str, Pass] = {
    "batchnorm": fold_batchnorm,
    "norm_affine": fold_norm_affine,
    "attention_scale": fold_attention_scale,
    "attention_biases": fold_attention_biases,
    "quick_gelu": fold_quick_gelu,
    "class_token": compute_class_token_only,
}

# What depends on the device and the data type, in which the network already is.
LAYOUT: dict[str, Pass] = {
    "channels_last": keep_channels_last,
    "kernels": use_norm_kernels,
    "slices": slice_mlps,
    "pack": pack_linears,
}

PASSES = (*ALGEBRA, *LAYOUT)


def chosen_passes(without: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of all passes but some; a name that there is not is refused."""
    if isinstance(without, str):
        without = (without,)
    for name in without:
        if name not in PASSES:
            raise UserError(
                f"Got without={name!r}, expected passes among {', '.join(PASSES)}."
                f"{did_you_mean(name, PASSES)}"
            )
    return tuple(name for name in PASSES if name not in without)
