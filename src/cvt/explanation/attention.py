"""Attention maps on request, from the very inputs that each attention module sees."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.attention import Attention


@dataclass(frozen=True)
class AttentionMap:
    """The softmax weights of one attention module.

    Args:
        name: The module's name, such as `stages.2.blocks.9.attn`.
        weights: (B, num_heads, Nq, Nkv); each row sums to 1. Keys are fewer than queries where
            they are read at a stride.
        grid: (H, W) of the tokens that came in.
        num_prefix: How many leading queries, and keys, are class tokens.
    """

    name: str
    weights: Tensor
    grid: tuple[int, int]
    num_prefix: int


def attention_maps(model: nn.Module, image: Tensor) -> list[AttentionMap]:
    """Runs a model on images (B, C, H, W) and returns the map of every attention, in order.

    The model runs as it is, fused attention included; each map is computed beside it, by the
    written-out softmax. Memory grows with Nq x Nkv: at 224 pixels, one image of CvT-13's first
    stage takes 9.8 MB.
    """
    attentions = {
        name: module for name, module in model.named_modules() if isinstance(module, Attention)
    }
    if not attentions:
        raise UserError(
            f"Got a {type(model).__name__} without an attention of this library's, expected a "
            "model such as cvt_13; the inside of timm's networks and of deployed ones is not shown."
        )
    maps: list[AttentionMap] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: Attention, inputs: tuple[Tensor, tuple[int, int], int]) -> None:
            tokens, grid, num_prefix = inputs
            weights = module.attention_map(tokens, grid, num_prefix)
            maps.append(AttentionMap(name, weights, tuple(grid), num_prefix))

        return hook

    handles = [
        module.register_forward_pre_hook(record(name)) for name, module in attentions.items()
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return maps
