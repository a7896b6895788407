"""The inference form of a stage."""

import torch
from torch import Tensor, nn

from cvt.deploy.block_form import BlockForm
from cvt.deploy.token_parts import Parts, behind
from cvt.parts.position import PositionTable, resize_table
from cvt.parts.stage import Stage


class StageForm(nn.Module):
    """Map (B, C, H, W) to tokens, in one or two parts, and their grid.

    With `splits`, prefix and grid travel by themselves (see `cvt.deploy.channels_last`).
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.num_prefix = stage.num_prefix
        self.embed = stage.embed
        self.cls_token, self.dist_token = stage.cls_token, stage.dist_token
        self.pos_embed = stage.pos_embed
        self.blocks = stage.blocks
        self.pegs = stage.pegs
        self.splits = False

    def forward(self, fmap: Tensor) -> tuple[Parts, tuple[int, int]]:
        parts, grid = self._start(fmap)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, BlockForm)
            parts, grid = block.run(parts, grid, self.num_prefix)
            if index < len(self.pegs) and not block.only_prefix:
                *prefix, last = parts
                num_prefix = 0 if prefix else self.num_prefix
                parts = (*prefix, self.pegs[index](last, grid, num_prefix))
        return parts, grid

    def _start(self, fmap: Tensor) -> tuple[Parts, tuple[int, int]]:
        tokens, grid = self.embed(fmap)
        given: list[Tensor] = [
            each for each in (self.cls_token, self.dist_token) if each is not None
        ]
        parts: Parts = (tokens,)
        if given:
            prefix = torch.cat(given, dim=1).expand(tokens.shape[0], -1, -1)
            parts = (prefix, tokens) if self._pays(tokens) else (behind(prefix, tokens),)
        if self.pos_embed is not None:
            parts = _placed(self.pos_embed, parts, grid, self.num_prefix)
        return parts, grid

    def _pays(self, tokens: Tensor) -> bool:
        """Whether to let the prefix travel by itself: never in a graph, which has one form.

        In a batch of one the grid's tokens lie without gaps behind the prefix.
        """
        return self.splits and not torch.compiler.is_compiling() and tokens.shape[0] > 1


def _placed(position: PositionTable, parts: Parts, grid: tuple[int, int], num_prefix: int) -> Parts:
    """Adds the table, interpolated to the grid."""
    table = resize_table(position.table, position.grid, grid, num_prefix, position.mode)
    if len(parts) == 1:
        return (parts[0] + table,)
    return parts[0] + table[:, :num_prefix], parts[1] + table[:, num_prefix:]
