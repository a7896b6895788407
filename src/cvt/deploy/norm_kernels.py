"""Pass: the first norm and the three convolutions behind it in one kernel, on GPUs.

The same sums as LayerNorm and the convolutions with BatchNorm in them, see
`cvt.deploy.kernels.norm_projections`, which also has the traffic that this saves. In half precision
they are rounded once, at the end, and not behind the norm as well.

It is for blocks whose q, k and v are all read by 3x3 convolutions of stride 1 or 2 without
BatchNorm, in float32, bfloat16 and float16; others stay as they are. So do all where the kernel
could not be compiled: without Triton, or the C compiler that it calls, or on a GPU older than those
that Triton supports (compute capability 8.0). With `TRITON_INTERPRET=1` Triton's interpreter runs
it on a CPU as well.

The kernel takes prefix tokens along, in and out. So where `channels_last` has let the prefix travel
by itself, to spare the convolutions a copy, tokens travel in one tensor again: two would have to be
joined in front of each kernel.
"""

import os
import shutil

import torch
from torch import nn

from cvt.deploy.block_form import BlockForm
from cvt.deploy.kernel_attention_form import KernelAttentionForm
from cvt.deploy.kernels.norm_projections import interpreted, kernel_computes
from cvt.deploy.stage_form import StageForm
from cvt.parts.projection import ConvProjection

_OLDEST = (8, 0)


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
            blocks = (each for each in stage.blocks if isinstance(each, BlockForm))
            stage.splits = any(block.attn.reads_grid for block in blocks)
    return count


def _serves(block: BlockForm) -> bool:
    attn, norm = block.attn, block.norm1
    # Where the kernel already is, its attention has the norm.
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine:
        return False
    if attn.reduce is not None:
        return False
    if not all(_is_for_kernel(each) for each in (attn.q, attn.k, attn.v)):
        return False
    return _runs_on(norm.weight.dtype, norm.weight.device)


def _is_for_kernel(projection: nn.Module) -> bool:
    """Whether it is a convolution that the kernel computes; ours are depthwise, and padded."""
    if not isinstance(projection, ConvProjection) or not isinstance(projection.bn, nn.Identity):
        return False
    conv = projection.conv
    return conv.kernel_size == (3, 3) and conv.stride in ((1, 1), (2, 2))


def _runs_on(dtype: torch.dtype, device: torch.device) -> bool:
    if not kernel_computes(dtype, device):
        return False
    if interpreted():
        return True
    has_compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(has_compiler) and torch.cuda.get_device_capability(device) >= _OLDEST
