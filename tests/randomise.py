"""Weights that hide nothing: at initialisation biases are 0 and BatchNorm does nothing."""

import torch
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills every parameter and running statistic with seeded random values, in place.

    Magnitudes keep the activations near 1 through any depth: matrices and kernels have standard
    deviation `fan_in ** -0.5`, norms' weights lie in 0.5..1.5, biases and running means have
    standard deviation 0.3, tokens and tables 1. Returns the model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_values(name, tensor, generator))
    return model


def _values(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("running_var"):
        return torch.rand(tensor.shape, generator=generator) + 0.5
    if name.endswith(("cls_token", "dist_token", "table")):
        return torch.randn(tensor.shape, generator=generator)
    if tensor.ndim > 1:
        return torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5
    if name.endswith("weight"):
        return torch.rand(tensor.shape, generator=generator) + 0.5
    return torch.randn(tensor.shape, generator=generator) * 0.3
