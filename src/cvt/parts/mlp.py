"""The MLP of a block, and the activation that the reference weights were trained with."""

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x) (Hendrycks and Gimpel, arXiv 1606.08415, section 2), computed as a SiLU.

    One SiLU of the scaled input needs one saved tensor for the gradient, where the written-out
    product needs two, and half the memory traffic; the two differ by float rounding only.
    """

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * 1.702
        # `scaled` is ours alone: without gradients nobody reads it again. A trace has to be the
        # same with gradients and without, since its own check compares the two.
        keep = self.training or torch.is_grad_enabled() or torch.jit.is_tracing()
        return F.silu(scaled, inplace=not keep).mul_(1 / 1.702)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}


def make_mlp(dim: int, ratio: float, act_layer: str, drop_rate: float) -> Mlp:
    """Returns linear, activation, dropout, linear, dropout; the hidden width is `dim * ratio`."""
    return Mlp(dim, int(dim * ratio), act_layer=ACTIVATIONS[act_layer], drop=drop_rate)
