"""The inference form of a whole network of stages."""

from typing import cast

from torch import Tensor, nn

from cvt.deploy.stage_form import StageForm
from cvt.deploy.token_parts import joined, prefix_and_grid
from cvt.parts.backbone import Backbone
from cvt.parts.contract import check_image
from cvt.parts.grid import tokens_to_map
from cvt.parts.stage import Stage


class StagedForm(nn.Module):
    """Images (B, in_chans, H, W) to what `Backbone.forward` returns in eval mode.

    The last norm sees only what is pooled: it works on each token by itself.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.spec, self.in_chans = backbone.spec, backbone.in_chans
        self.global_pool = backbone.global_pool
        self.stages = nn.ModuleList(StageForm(cast("Stage", stage)) for stage in backbone.stages)
        self.norm: nn.Module = backbone.norm
        self.head: nn.Module = backbone.head
        self.head_dist: nn.Module | None = backbone.head_dist

    def forward(self, image: Tensor) -> Tensor:
        check_image(image, self.in_chans, self.spec)
        fmap = image
        *before, last = cast("list[StageForm]", self.stages)
        for stage in before:
            parts, grid = stage(fmap)
            fmap = tokens_to_map(prefix_and_grid(parts, stage.num_prefix)[1], grid, 0)
        parts, _ = last(fmap)
        if self.global_pool == "avg":
            return self.head(self.norm(prefix_and_grid(parts, last.num_prefix)[1]).mean(dim=1))
        if self.global_pool != "token":
            return self.head(self.norm(joined(parts)))
        if self.head_dist is None:
            return self.head(self.norm(parts[0][:, 0]))
        pair = self.norm(parts[0][:, :2])
        return (self.head(pair[:, 0]) + self.head_dist(pair[:, 1])) / 2
