"""Every private operator of torch's that the library calls (`tests/inference/` pins them).

torch's compiler packs weights for oneDNN and appends activation and addition to its matrix
products through these operators. They are in the builds of torch for x86 and ARM CPUs, and have no
public name; where they are missing, the plain linear map stands in.

Source: torch 2.11 to 2.15, torch/_inductor/fx_passes/mkldnn_fusion.py,
aten/src/ATen/native/mkldnn/Linear.cpp.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvt.runtime import cpu_capabilities, cpu_computes

_OPERATORS: Any = torch.ops.mkldnn
_NAMES = ("_reorder_linear_weight", "_linear_pointwise")


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine has packed linear maps in a data type."""
    has_all = all(hasattr(_OPERATORS, name) for name in _NAMES)
    if not torch.backends.mkldnn.is_available() or not has_all:
        return False
    return dtype == torch.float32 or (dtype != torch.float64 and cpu_computes(dtype))


def packing_pays(dtype: torch.dtype) -> bool:
    """Whether packed linear maps are faster here than the plain ones, by what was measured.

    With AVX-512 they are. With AVX2 alone (Zen 3, one core, float32) the plain product reaches 64
    to 84 GFLOP/s on CvT-13's shapes, the packed one 65 to 77, and with the SiLU appended 41 to 54
    against 42 to 79. Other processors were not measured.
    """
    return dtype != torch.float32 or bool(cpu_capabilities().get("avx512_f", False))


def pack(weight: Tensor) -> Tensor:
    """Returns a weight (out, in) in the layout that oneDNN's product wants: opaque to torch."""
    return _OPERATORS._reorder_linear_weight(weight)


def linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str, algorithm: str
) -> Tensor:
    """Returns activation(x @ weight.T + bias) for x (..., in)."""
    return _OPERATORS._linear_pointwise(x, packed, bias, activation, [], algorithm)


def linear_add(x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Returns x @ weight.T + bias + residual."""
    return _OPERATORS._linear_pointwise.binary(x, residual, packed, bias, "add")


def activation_of(module: nn.Module) -> tuple[str, str] | None:
    """Returns oneDNN's name and algorithm of an activation, or None where it has no such."""
    if isinstance(module, nn.GELU):
        return "gelu", "none" if module.approximate == "none" else "tanh"
    names: dict[type[nn.Module], str] = {nn.Identity: "none", nn.SiLU: "swish", nn.ReLU: "relu"}
    return (names[type(module)], "") if type(module) in names else None
