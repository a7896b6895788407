"""Pass: the affine part of a LayerNorm into the linear maps behind it.

LayerNorm is g * n(x) + h, where n subtracts the mean and divides by the deviation. A linear map
that reads nothing else takes g and h over: W (g * n + h) + b = (W diag(g)) n + (b + W h). This
holds for a block's second norm and the MLP's first map; for its first norm if q, k and v are plain
linear maps; for the norm of PVT's reduction and k and v; for the two norms of T2T's token layer;
for the first norm of TNT's words-to-patches map; for the last norm and the classifiers, behind the
mean of tokens as well, which commutes with a factor and a sum.

A depthwise convolution cannot take them: it sees zeros, not h, outside the map, and the class
token does not pass through it.
"""

from collections.abc import Iterator
from typing import cast

from torch import nn

from cvt.deploy.attention_form import AttentionForm
from cvt.deploy.block_form import BlockForm
from cvt.deploy.fold_linear import take_affine
from cvt.deploy.staged_form import StagedForm
from cvt.parts.projection import LinearProjection
from cvt.parts.tnt import TNT
from cvt.parts.tnt_block import WordsToPatches
from cvt.parts.token_layer import TokensToToken


def fold_norm_affine(network: nn.Module) -> int:
    """Folds every such norm and leaves one without weight and bias; returns how many."""
    places = list(_places(network))
    places += [place for module in network.modules() for place in _places_within(module)]
    folded = [_fold(*place) for place in places]
    return sum(folded)


Place = tuple[nn.Module, str, tuple[nn.Module, ...]]
"""A module, the name of a norm in it, and all that reads this norm."""


def _places(network: nn.Module) -> Iterator[Place]:
    """The last norm, where the network's own call is the only reader."""
    if isinstance(network, StagedForm):
        heads = (network.head,) if network.head_dist is None else (network.head, network.head_dist)
        yield network, "norm", heads
    elif isinstance(network, TNT):
        yield network, "norm", (network.head,)


def _places_within(module: nn.Module) -> Iterator[Place]:
    if isinstance(module, BlockForm):
        yield module, "norm2", (module.mlp.fc1,)
        attn = module.attn
        projections = (attn.q, attn.k, attn.v)
        if attn.reduce is None and all(_is_plain(each) for each in projections):
            yield module, "norm1", tuple(each.linear for each in projections)
    elif isinstance(module, AttentionForm) and module.reduce is not None:
        yield module.reduce, "norm", (module.k.linear, module.v.linear)
    elif isinstance(module, TokensToToken):
        yield module, "norm1", (module.q, module.k, module.v)
        yield module, "norm2", (module.mlp.fc1,)
    elif isinstance(module, WordsToPatches):
        yield module, "norm1", (module.proj,)


def _is_plain(projection: nn.Module) -> bool:
    return isinstance(projection, LinearProjection)


def _fold(module: nn.Module, name: str, readers: tuple[nn.Module, ...]) -> bool:
    norm = getattr(module, name)
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine:
        return False
    if not all(isinstance(reader, nn.Linear) for reader in readers):
        return False
    take_affine(cast("tuple[nn.Linear, ...]", readers), norm.weight, norm.bias)
    shape = list(norm.normalized_shape)
    setattr(module, name, nn.LayerNorm(shape, eps=norm.eps, elementwise_affine=False))
    return True
