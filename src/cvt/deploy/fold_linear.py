"""Linear maps that take over a factor or an affine map before or behind them, in float64."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
