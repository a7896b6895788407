"""Pass: channels-last, so that tokens and maps are two views of the same memory.

Tokens (B, N, C) without gaps are a channels-last map (B, C, H, W). Kernels in that layout make the
convolutions write it, also the first, which reads images that are not in it; so the norm behind an
embedding and the linear map behind a depthwise convolution read what was written, uncopied.

A prefix leaves a gap between the images of a batch, and each of the three convolutions would copy
the map to close it, and the linear maps' inputs would be copied to put the prefix in front. Where
convolutions read the tokens the prefix travels by itself; only keys and values, of which there are
few at stride 2, are put together for attention.
"""

import torch
from torch import nn

from cvt.deploy.block_form import BlockForm
from cvt.deploy.stage_form import StageForm


def keep_channels_last(network: nn.Module) -> int:
    """Lays out kernels and lets stages split; returns how many convolutions and stages it met."""
    count = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
            count += 1
        elif isinstance(module, StageForm) and module.num_prefix:
            blocks = [each for each in module.blocks if isinstance(each, BlockForm)]
            module.splits = any(block.attn.reads_grid for block in blocks)
            count += module.splits
    return count
