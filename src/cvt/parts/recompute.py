"""Gradient checkpointing (arXiv 1604.06174) that counts a batch once in running statistics."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module, *inputs: Any) -> Any:
    """Returns `block(*inputs)`, keeping only the inputs; the backward pass runs the block again.

    The second run sees the batch that BatchNorm has counted already, so it leaves the running
    statistics alone. (A compiler keeps such side effects out of the second run by itself.)
    """
    if torch.compiler.is_compiling():
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_kept(block)),
    )


@contextmanager
def _statistics_kept(block: nn.Module) -> Generator[None]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
