"""A linear map whose weight lies as oneDNN's matrix product reads it."""

from typing import Any

import torch
from torch import Tensor, nn

from cvt.deploy import onednn


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
