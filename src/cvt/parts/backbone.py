"""A network of stages with timm's model contract, built from a `BackboneSpec`."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.grid import tokens_to_map
from cvt.parts.init import init_head, init_stage
from cvt.parts.spec import BackboneSpec
from cvt.parts.stage import Stage
from cvt.parts.timm_contract import feature_take_indices


class Backbone(nn.Module):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes).

    With `num_classes=0` the pooled features (B, num_features) come out; with `global_pool=''`
    as well, the normalised tokens (B, num_prefix_tokens + h*w, num_features).

    Source: CvT, arXiv 2103.15808, section 3; microsoft/CvT f851e68, lib/models/cls_cvt.py.
    Deviations: none in what is computed; a batch of one keeps its batch axis, and all
    combinations of a row's choices work.
    """

    pretrained_cfg: dict[str, Any]  # set by timm's builder
    record: Any  # set by `cvt.load`: what the checkpoint says about itself

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = spec.num_classes
        self.in_chans = spec.in_chans
        self.global_pool = spec.global_pool
        self.num_features = self.head_hidden_size = spec.stages[-1].embed_dim
        self.num_prefix_tokens = int(spec.stages[-1].cls_token)
        self.stages = nn.ModuleList(_make_stages(spec))
        self.norm = nn.LayerNorm(self.num_features, eps=spec.norm_eps)
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.head = self._make_head(spec.num_classes)
        self.extra_level = nn.MaxPool2d(2, ceil_mode=True) if spec.extra_level else None
        self.feature_info = _feature_info(spec)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """Returns the last stage's tokens, normalised: (B, num_prefix_tokens + h*w, C)."""
        self._check_image(image)
        fmap = image
        for stage in self._stages:
            tokens, grid = stage(fmap)
            fmap = tokens_to_map(tokens, grid, stage.num_prefix)
        return self.norm(tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools normalised tokens and classifies them; `pre_logits` stops before the classifier."""
        pooled = self.head_drop(self._pool(tokens))
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the final tokens and each chosen stage's map (B, C, h, w), finest first.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Levels of `feature_info`, or how many of the last ones; None: all.
            norm: Apply the final LayerNorm to the last stage's map as well.
            stop_early: Leave out the stages after the last chosen one.
            output_fmt: `NCHW` maps, or `NLC` tokens without the prefix.
            intermediates_only: Return the list alone.

        Raises:
            UserError: Another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt={output_fmt!r} must be 'NCHW' or 'NLC'.")
        self._check_image(x)
        taken, last = feature_take_indices(len(self.feature_info), indices)
        maps: list[Tensor] = []
        fmap, tokens = x, x
        for index, stage in enumerate(self._stages):
            if stop_early and index > last:
                break
            tokens, grid = stage(fmap)
            is_final = index == len(self.stages) - 1
            tokens = self.norm(tokens) if is_final and norm else tokens
            fmap = tokens_to_map(tokens, grid, stage.num_prefix)
            maps.append(fmap)
            tokens = self.norm(tokens) if is_final and not norm else tokens
        if self.extra_level is not None and len(maps) == len(self.stages):
            maps.append(self.extra_level(maps[-1]))
        maps = [fmap for index, fmap in enumerate(maps) if index in taken]
        if output_fmt == "NLC":
            maps = [fmap.flatten(2).transpose(1, 2) for fmap in maps]
        return maps if intermediates_only else (tokens, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops the stages that the chosen levels don't need; returns the levels as indices."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        self.stages = self.stages[: last + 1]
        if last < len(self.spec.stages):
            self.extra_level = None
        if prune_norm or last < len(self.spec.stages) - 1:  # it is as wide as the last stage
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Returns the last linear layer, or an identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh classifier in place (none for 0), and another pooling if one is named."""
        changes: dict[str, Any] = {"num_classes": num_classes}
        if global_pool is not None:
            changes["global_pool"] = global_pool
        self.spec = self.spec.change(**changes)
        self.num_classes, self.global_pool = num_classes, self.spec.global_pool
        self.head = self._make_head(num_classes).to(next(self.stages.parameters()))

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
        """Names that weight decay skips besides biases and norms: class tokens and tables.

        Source: microsoft/CvT f851e68, `ConvolutionalVisionTransformer.no_weight_decay`.
        """
        special = ("cls_token", "pos_embed.table")
        return {name for name, _ in self.named_parameters() if name.endswith(special)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into depth groups, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^stages\.0\.embed", "blocks": [(r"^stages\.(\d+)", None)]}
        return {
            "stem": r"^stages\.0\.(?:embed|cls_token|pos_embed)",
            "blocks": [
                (r"^stages\.(\d+)\.(?:embed|cls_token|pos_embed)", None),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @property
    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", self.stages)

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

    def _check_image(self, image: Tensor) -> None:
        """Turns torch's shape errors into a sentence; symbolic sizes of tracers pass."""
        sizes = tuple(image.shape) if isinstance(image, Tensor) else ()
        if not all(isinstance(size, int) for size in sizes) or torch.compiler.is_compiling():
            return
        if sizes and (len(sizes) != 4 or sizes[1] != self.in_chans):
            raise UserError(
                f"Got an image tensor of shape {sizes}; expected "
                f"(batch, {self.in_chans}, height, width)."
            )
        if sizes and min(sizes[2:]) < self.spec.min_size:
            self.spec.grids((sizes[2], sizes[3]))


def _make_stages(spec: BackboneSpec) -> list[Stage]:
    stages, in_chans = [], spec.in_chans
    for row, size in zip(spec.stages, _incoming_sizes(spec), strict=True):
        stage = Stage(row, spec, in_chans, row.grid_after_embed(size))
        init_stage(stage)
        stages.append(stage)
        in_chans = row.embed_dim
    return stages


def _incoming_sizes(spec: BackboneSpec) -> list[tuple[int, int]]:
    """The (H, W) of the map that each stage receives at the spec's own image size."""
    return [spec.img_size, *spec.grids(spec.img_size)[:-1]]


def _feature_info(spec: BackboneSpec) -> list[dict[str, Any]]:
    """timm's description of the pyramid: channels, stride and module of each level."""
    info, reduction = [], 1
    for index, row in enumerate(spec.stages):
        reduction *= row.embed_stride * row.q_stride
        info.append({"num_chs": row.embed_dim, "reduction": reduction, "module": f"stages.{index}"})
    if spec.extra_level:
        last = spec.stages[-1].embed_dim
        info.append({"num_chs": last, "reduction": 2 * reduction, "module": "extra_level"})
    return info
