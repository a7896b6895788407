"""Pass: BatchNorm into the convolution before it.

With running statistics m and s**2, BatchNorm is affine in each channel: g (y - m) / s + h. Behind
y = w * x (a convolution, here depthwise, without bias) that is (g / s) w * x + (h - g m / s): a
convolution with another kernel and a bias. The zeros around the map give zeros before and after
the factor, and BatchNorm comes behind the convolution, so that the border is exact as well.
"""

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cvt.parts.projection import ConvProjection


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
    """For networks that are not ours (the baselines): pairs are read off the traced graph."""
    try:
        graph = _Tracer().trace(network)
    except fx.proxy.TraceError:  # control flow that depends on the images
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
