"""The passes in their order, by the names that `without` takes."""

from collections.abc import Callable, Sequence

from torch import nn

from cvt.deploy.attention_biases import fold_attention_biases
from cvt.deploy.attention_scale import fold_attention_scale
from cvt.deploy.channels_last import keep_channels_last
from cvt.deploy.class_token import compute_class_token_only
from cvt.deploy.fold_batchnorm import fold_batchnorm
from cvt.deploy.norm_affine import fold_norm_affine
from cvt.deploy.norm_kernels import use_norm_kernels
from cvt.deploy.pack import pack_linears
from cvt.deploy.quick_gelu import fold_quick_gelu
from cvt.deploy.slices import slice_mlps
from cvt.errors import UserError, did_you_mean

Pass = Callable[[nn.Module], int]
"""Rewrites a network in place, and returns in how many places."""

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
    """Returns the names of all passes but some.

    Raises:
        UserError: There is no such pass (the nearest is named).
    """
    if isinstance(without, str):
        without = (without,)
    for name in without:
        if name not in PASSES:
            raise UserError(
                f"Got without={name!r}, expected passes among {', '.join(PASSES)}."
                f"{did_you_mean(name, PASSES)}"
            )
    return tuple(name for name in PASSES if name not in without)
