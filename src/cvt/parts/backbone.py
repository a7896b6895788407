"""A network of stages, built from a `BackboneSpec`: CvT, and most of its neighbours."""

from typing import Any, cast

from torch import Tensor, nn

from cvt.parts.model import Levels, VisionModel
from cvt.parts.spec import BackboneSpec
from cvt.parts.stage import Stage
from cvt.parts.tokens import prefix_of, tokens_to_map


class Backbone(VisionModel):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes), see `VisionModel`.

    A distilled network returns the mean of its two classifiers; see `set_distilled_training`.

    Source: CvT, arXiv 2103.15808, section 3; microsoft/CvT f851e68, lib/models/cls_cvt.py. The
    other rows' sources are named where the rows are. Deviations: none in what is computed; a
    batch of one keeps its batch axis, and all combinations of a row's choices work. Initial
    weights are those of the CvT reference in every row.
    """

    spec: BackboneSpec

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(
            spec, num_features=spec.stages[-1].embed_dim, num_prefix_tokens=spec.num_prefix[-1]
        )
        self.distilled_training = False
        self.stages = nn.ModuleList(Stage(spec, index) for index in range(len(spec.stages)))
        self.norm = nn.LayerNorm(self.num_features, eps=spec.norm_eps)
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.head = self._make_head()
        self.head_dist = self._make_head() if spec.distilled else None
        self.extra_level = nn.MaxPool2d(2, ceil_mode=True) if spec.extra_level else None
        self.feature_info = _feature_info(spec)

    def forward_features(self, image: Tensor) -> Tensor:
        self.check_image(image)
        fmap = image
        for stage in self._stages:
            tokens, grid = stage(fmap)
            fmap = tokens_to_map(tokens, grid, stage.num_prefix)
        return self.norm(tokens)

    def forward_head(
        self, tokens: Tensor, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pools normalised tokens and classifies them; `pre_logits` stops before the classifier.

        While `set_distilled_training` is on, a distilled network in training mode returns the
        logits of the class token and those of the distillation token.
        """
        if self.head_dist is None or not self.global_pool:
            return super().forward_head(tokens, pre_logits)
        pair = self.head_drop(tokens[:, :2])
        if pre_logits:
            return pair.mean(dim=1)
        logits, dist_logits = self.head(pair[:, 0]), self.head_dist(pair[:, 1])
        if self.distilled_training and self.training:
            return logits, dist_logits
        return (logits + dist_logits) / 2

    def set_distilled_training(self, enable: bool = True) -> None:
        """Makes `forward` return both classifiers' logits in training mode, for a loss on each."""
        self.distilled_training = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self._stages:
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        entry = r"(?:embed|cls_token|dist_token|pos_embed)"
        if coarse:
            return {"stem": r"^stages\.0\.embed", "blocks": [(r"^stages\.(\d+)", None)]}
        return {
            "stem": rf"^stages\.0\.{entry}",
            "blocks": [
                (rf"^stages\.(\d+)\.{entry}", None),
                (r"^stages\.(\d+)\.(?:blocks|pegs)\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @property
    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", self.stages)

    def _walk(self, image: Tensor, last: int, norm: bool) -> tuple[Tensor, Levels]:
        levels = self.spec.levels
        stop = levels[min(last, len(levels) - 1)]
        found: Levels = []
        fmap = tokens = image
        for index, stage in enumerate(self._stages):
            if index > stop[0]:
                break
            is_final = index == len(self.stages) - 1
            tokens, grid = stage.start(fmap)
            for block in range(-1, len(stage.blocks)):
                if (index, block) > stop:
                    break
                if block >= 0:
                    tokens, grid = stage.step(block, tokens, grid)
                if (index, block) in levels:
                    shown = self.norm(tokens) if is_final and norm else tokens
                    prefix = prefix_of(shown, stage.num_prefix)
                    found.append((tokens_to_map(shown, grid, stage.num_prefix), prefix))
            fmap = tokens_to_map(tokens, grid, stage.num_prefix)
            tokens = self.norm(tokens) if is_final else tokens
        if self.extra_level is not None and len(found) == len(levels):
            found.append((self.extra_level(found[-1][0]), None))
        return tokens, found

    def _cut_behind(self, last: int) -> None:
        levels = self.spec.levels
        stage, block = levels[min(last, len(levels) - 1)]
        self.stages = self.stages[: stage + 1]
        self._stages[-1].blocks = self._stages[-1].blocks[: block + 1]
        self._stages[-1].pegs = self._stages[-1].pegs[: block + 1]
        if last < len(levels):
            self.extra_level = None
        if stage < len(self.spec.stages) - 1:  # it is as wide as the last stage
            self.norm = nn.Identity()


def _feature_info(spec: BackboneSpec) -> list[dict[str, Any]]:
    is_by_block = len(spec.levels) != len(spec.stages)
    modules = [
        (f"stages.{stage}" + (f".blocks.{block}" if is_by_block else ""), spec.stages[stage])
        for stage, block in spec.levels
    ]
    if spec.extra_level:
        modules.append(("extra_level", spec.stages[-1]))
    return [
        {"num_chs": row.embed_dim, "reduction": stride, "module": module}
        for (module, row), stride in zip(modules, spec.level_strides, strict=True)
    ]
