"""The pre-norm residual block (CvT, figure 2b), and running it again instead of keeping it."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from cvt.parts import Grid
from cvt.parts.tokens import Gridded, map_to_tokens, prefix_of, tokens_to_map


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)); stochastic depth on the branches only.

    `skip` is for a block whose attention returns a smaller grid: it brings the residual there.
    """

    def __init__(
        self,
        dim: int,
        *,
        attn: nn.Module,
        mlp: nn.Module,
        norm_eps: float,
        drop_path_rate: float = 0.0,
        skip: "PooledSkip | None" = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.skip = skip

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> Gridded:
        branch = self.drop_path1(self.attn(self.norm1(tokens), grid, num_prefix))
        if self.skip is not None:
            tokens, grid = self.skip(tokens, grid, num_prefix)
        tokens = tokens + branch
        return Gridded(tokens + self.drop_path2(self.mlp(self.norm2(tokens))), grid)


class PooledSkip(nn.Module):
    """Max-pools the residual to the grid of strided queries (MViT, arXiv 2104.11227, section 3.2).

    The kernel and padding are those of the query convolution, so that the grids agree.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(kernel, stride, kernel // 2)

    def forward(self, tokens: Tensor, grid: Grid, num_prefix: int) -> tuple[Tensor, Grid]:
        fmap = self.pool(tokens_to_map(tokens, grid, num_prefix))
        tokens = map_to_tokens(fmap, prefix_of(tokens, num_prefix))
        return tokens, (fmap.shape[2], fmap.shape[3])


def recompute(block: nn.Module, *inputs: Any) -> Any:
    """Returns `block(*inputs)`, keeping only the inputs; the backward pass runs the block again.

    Gradient checkpointing (arXiv 1604.06174) that counts a batch once: the second run leaves
    BatchNorm's running statistics alone. (A compiler keeps such side effects out of the second
    run by itself.)
    """
    kept: dict[str, Any] = {"context_fn": lambda: (nullcontext(), _statistics_kept(block))}
    own = {} if torch.compiler.is_compiling() else kept
    return checkpoint(block, *inputs, use_reentrant=False, **own)


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
