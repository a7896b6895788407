"""A network of stages with timm's model contract, built from a `BackboneSpec`."""

from typing import Any, cast

from torch import Tensor, nn

from cvt.parts.model import VisionModel, check_format, feature_take_indices, shape_intermediates
from cvt.parts.spec import BackboneSpec
from cvt.parts.stage import Stage, init_head, init_stage
from cvt.parts.tokens import prefix_of, tokens_to_map


class Backbone(VisionModel):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes).

    With `num_classes=0` the pooled features (B, num_features) come out; with `global_pool=''`
    as well, the normalised tokens (B, num_prefix_tokens + h*w, num_features). A distilled network
    returns the mean of its two classifiers; see `set_distilled_training`.

    Source: CvT, arXiv 2103.15808, section 3; microsoft/CvT f851e68, lib/models/cls_cvt.py. The
    other rows' sources are named where the rows are. Deviations: none in what is computed; a
    batch of one keeps its batch axis, and all combinations of a row's choices work. Initial
    weights are those of the CvT reference in every row.
    """

    spec: BackboneSpec

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = spec.num_classes
        self.in_chans = spec.in_chans
        self.global_pool = spec.global_pool
        self.num_features = self.head_hidden_size = spec.stages[-1].embed_dim
        self.num_prefix_tokens = spec.num_prefix[-1]
        self.distilled_training = False
        self.stages = nn.ModuleList(_make_stages(spec))
        self.norm = nn.LayerNorm(self.num_features, eps=spec.norm_eps)
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.head = self._make_head(spec.num_classes)
        self.head_dist = self._make_head(spec.num_classes) if spec.distilled else None
        self.extra_level = nn.MaxPool2d(2, ceil_mode=True) if spec.extra_level else None
        self.feature_info = _feature_info(spec)

    def forward_features(self, image: Tensor) -> Tensor:
        """Returns the last stage's tokens, normalised: (B, num_prefix_tokens + h*w, C)."""
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
            pooled = self.head_drop(self._pool(tokens))
            return pooled if pre_logits else self.head(pooled)
        pair = self.head_drop(tokens[:, :2])
        if pre_logits:
            return pair.mean(dim=1)
        logits, dist_logits = self.head(pair[:, 0]), self.head_dist(pair[:, 1])
        if self.distilled_training and self.training:
            return logits, dist_logits
        return (logits + dist_logits) / 2

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        return_prefix_tokens: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Returns the final tokens and each chosen level's map (B, C, h, w), finest first.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Levels of `feature_info`, or how many of the last ones; None: all.
            norm: Apply the final LayerNorm to the maps of the last stage as well.
            stop_early: Leave out what comes after the last chosen level.
            output_fmt: `NCHW` maps, or `NLC` tokens without the prefix.
            intermediates_only: Return the list alone.
            return_prefix_tokens: Pair each level with its prefix tokens (B, P, C).
            output_dict: Return a dict, see `shape_intermediates`.

        Raises:
            UserError: Another `output_fmt`.
        """
        check_format(output_fmt)
        self.check_image(x)
        taken, last = feature_take_indices(len(self.feature_info), indices)
        levels = self._levels
        maps: list[Tensor] = []
        prefixes: list[Tensor | None] = []
        fmap, tokens = x, x
        for index, stage in enumerate(self._stages):
            if stop_early and index > levels[min(last, len(levels) - 1)][0]:
                break
            is_final = index == len(self.stages) - 1
            tokens, grid = stage.start(fmap)
            for block in range(-1, len(stage.blocks)):
                if stop_early and last < len(levels) and (index, block) > levels[last]:
                    break
                if block >= 0:
                    tokens, grid = stage.step(block, tokens, grid)
                if (index, block) in levels:
                    shown = self.norm(tokens) if is_final and norm else tokens
                    maps.append(tokens_to_map(shown, grid, stage.num_prefix))
                    prefixes.append(prefix_of(shown, stage.num_prefix))
            fmap = tokens_to_map(tokens, grid, stage.num_prefix)
            tokens = self.norm(tokens) if is_final else tokens
        if self.extra_level is not None and len(maps) == len(levels):
            maps.append(self.extra_level(maps[-1]))
            prefixes.append(None)
        return shape_intermediates(
            tokens,
            [fmap for index, fmap in enumerate(maps) if index in taken],
            [prefix for index, prefix in enumerate(prefixes) if index in taken],
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            return_prefix_tokens=return_prefix_tokens,
            output_dict=output_dict,
        )

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the stages and blocks that the chosen levels don't need; returns the levels."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        levels = self._levels
        stage, block = levels[min(last, len(levels) - 1)]
        self.stages = self.stages[: stage + 1]
        self._stages[-1].blocks = self._stages[-1].blocks[: block + 1]
        self._stages[-1].pegs = self._stages[-1].pegs[: block + 1]
        if last < len(levels):
            self.extra_level = None
        if prune_norm or stage < len(self.spec.stages) - 1:  # it is as wide as the last stage
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def set_distilled_training(self, enable: bool = True) -> None:
        """Makes `forward` return both classifiers' logits in training mode, for a loss on each."""
        self.distilled_training = enable

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Returns the last linear layer (with distillation both), or an identity without one."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh classifier in place (none for 0), and another pooling if one is named."""
        changes: dict[str, Any] = {"num_classes": num_classes}
        if global_pool is not None:
            changes["global_pool"] = global_pool
        self.spec = self.spec.change(**changes)
        self.num_classes, self.global_pool = num_classes, self.spec.global_pool
        like = next(self.stages.parameters())
        self.head = self._make_head(num_classes).to(like)
        if self.head_dist is not None:
            self.head_dist = self._make_head(num_classes).to(like)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Interpolates position tables to another image size (H, W); nothing else stores one."""
        self.spec = self.spec.change(img_size=img_size)
        for row, stage, size in zip(
            self.spec.stages, self._stages, _incoming_sizes(self.spec), strict=True
        ):
            if stage.pos_embed is not None:
                stage.pos_embed.set_grid(row.grid_after_embed(size), stage.num_prefix)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for stage in self._stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay skips besides biases and norms: prefix tokens and tables.

        Source: microsoft/CvT f851e68, `ConvolutionalVisionTransformer.no_weight_decay`.
        """
        special = ("cls_token", "dist_token", "pos_embed.table")
        return {name for name, _ in self.named_parameters() if name.endswith(special)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into depth groups, for layer-wise learning rates."""
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

    @property
    def _levels(self) -> tuple[tuple[int, int], ...]:
        return self.spec.levels

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.global_pool == "token":
            return tokens[:, 0]
        if self.global_pool == "avg":
            on_grid = tokens[:, self.num_prefix_tokens :] if self.num_prefix_tokens else tokens
            return on_grid.mean(dim=1)
        return tokens

    def _make_head(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        init_head(head)
        return head


def _make_stages(spec: BackboneSpec) -> list[Stage]:
    stages, in_chans = [], spec.in_chans
    for index, (row, size) in enumerate(zip(spec.stages, _incoming_sizes(spec), strict=True)):
        stage = Stage(spec, index, in_chans, row.grid_after_embed(size))
        init_stage(stage)
        stages.append(stage)
        in_chans = row.embed_dim
    return stages


def _incoming_sizes(spec: BackboneSpec) -> list[tuple[int, int]]:
    """The (H, W) of the map that each stage receives at the spec's own image size."""
    return [spec.img_size, *spec.grids(spec.img_size)[:-1]]


def _feature_info(spec: BackboneSpec) -> list[dict[str, Any]]:
    """timm's description of the pyramid: channels, stride and module of each level."""
    strides = spec.level_strides
    is_by_block = len(spec.levels) != len(spec.stages)
    info = [
        {
            "num_chs": spec.stages[stage].embed_dim,
            "reduction": stride,
            "module": f"stages.{stage}" + (f".blocks.{block}" if is_by_block else ""),
        }
        for (stage, block), stride in zip(spec.levels, strides, strict=False)
    ]
    if spec.extra_level:
        last = spec.stages[-1].embed_dim
        info.append({"num_chs": last, "reduction": strides[-1], "module": "extra_level"})
    return info
