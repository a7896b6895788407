"""A network as plain data: one frozen row per stage, JSON there and back, strict about names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from cvt.errors import UserError
from cvt.parts.spec_checks import (
    MOST_STAGES,
    Channels,
    Classes,
    Epsilon,
    Rate,
    Side,
    check_fields,
    image_size,
    per_stage,
)
from cvt.parts.stage_spec import StageSpec
from cvt.plain import Length, check_values, from_plain

Activation = Literal["quick_gelu", "gelu", "silu", "relu"]
Scale = Literal["dim", "head_dim"]
Pool = Literal["token", "avg", ""]
Interpolation = Literal["bicubic", "bicubic_no_antialias", "bilinear"]
Schedule = Literal["stage", "network"]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A whole network: its stages, and the choices that hold for all of them.

    `attn_scale` is what the logits are multiplied by: `dim` is CvT's `embed_dim ** -0.5`,
    `head_dim` everybody else's. `norm_eps` is that of the blocks' norms and the final one,
    `embed_norm_eps` that of the norms behind embeddings and PVT's reductions. `img_size` (H, W)
    is read by position tables only, which are resized by `pos_interpolation`: bicubic with
    antialiasing or without, or bilinear without. `drop_path_schedule` lets stochastic depth grow
    from 0 within each stage, or over the whole network. `distilled` puts DeiT's distillation
    token behind the last stage's class token, with a classifier of its own (arXiv 2012.12877,
    section 4). `extra_level` adds a map of half the last stage's resolution to the pyramid.
    """

    stages: Annotated[tuple[StageSpec, ...], Length(1, MOST_STAGES)]
    num_classes: Classes = 1000
    in_chans: Channels = 3
    img_size: tuple[Side, Side] = (224, 224)
    global_pool: Pool = "token"
    distilled: bool = False
    act_layer: Activation = "quick_gelu"
    norm_eps: Epsilon = 1e-5
    embed_norm_eps: Epsilon = 1e-5
    attn_scale: Scale = "dim"
    pos_interpolation: Interpolation = "bicubic"
    drop_rate: Rate = 0.0
    drop_path_schedule: Schedule = "stage"
    extra_level: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", image_size(self.img_size))
        check_values(self, "the model")
        if self.global_pool == "token" and not self.stages[-1].cls_token:
            raise UserError(
                "global_pool='token' needs a class token in the last stage; "
                "set cls_token there, or global_pool='avg'."
            )
        if self.distilled and (not self.stages[-1].cls_token or self.global_pool == "avg"):
            raise UserError(
                "distilled=True needs a class token in the last stage and global_pool='token': "
                "the distillation token stands beside it."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dumps` takes and `from_dict` reads."""
        plain = asdict(self)
        plain["stages"] = list(plain["stages"])
        plain["img_size"] = list(plain["img_size"])
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "BackboneSpec":
        """Rebuilds a spec from `to_dict`'s data.

        Raises:
            UserError: An unknown key (the nearest is named), a missing one, or a wrong value.
        """
        return from_plain(cls, plain, "the spec")

    def change(self, **changes: Any) -> "BackboneSpec":
        """Returns a copy with fields replaced; a stage's field may be named directly.

        A stage's field given one value is set in every stage, given a list or tuple in each:
        `spec.change(kv_stride=1, projection=("linear", "conv", "conv"))`. Taking the class token
        away also turns token pooling into mean pooling, the only one left; asking for a
        distillation token puts a class token beside it, in the last stage, and pools from them.

        Raises:
            UserError: An unknown field (the nearest is named), or a list of another length.
        """
        of_stage = {field.name for field in fields(StageSpec)}
        of_whole = {field.name for field in fields(BackboneSpec)}
        check_fields(changes, of_stage | of_whole)
        stages = changes.get("stages", self.stages)
        if not isinstance(stages, list | tuple) or not all(
            isinstance(each, StageSpec) for each in stages
        ):
            raise UserError(f"Got stages={stages!r}, expected a list with one StageSpec a stage.")
        columns = {
            name: per_stage(name, value, len(stages))
            for name, value in changes.items()
            if name in of_stage
        }
        stages = [
            replace(stage, **{name: values[index] for name, values in columns.items()})
            for index, stage in enumerate(stages)
        ]
        whole = {name: value for name, value in changes.items() if name in of_whole}
        whole["stages"] = stages
        if changes.get("distilled") and "cls_token" not in changes:
            stages[-1] = replace(stages[-1], cls_token=True)
            whole.setdefault("global_pool", self.global_pool and "token")
        if not stages[-1].cls_token and self.global_pool == "token":
            whole.setdefault("global_pool", "avg")
        return replace(self, **whole)

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns each stage's (H, W) for an image of this size.

        Raises:
            UserError: The image is too small for a stage's embedding or reduction.
        """
        grids = []
        for number, stage in enumerate(self.stages, start=1):
            incoming = grids[-1] if grids else size
            inner = stage.grid_after_embed(incoming)
            if min(inner) < 1 or (stage.depth and min(stage.kv_grid(inner)) < 1):
                raise UserError(
                    f"An image of {size[0]}x{size[1]} pixels is too small: stage {number} has "
                    f"no grid left; the smallest side is {self.min_size} pixels."
                )
            grids.append(stage.grid_after(incoming))
        return grids

    @property
    def min_size(self) -> int:
        """The smallest side of an image, in pixels, that leaves every stage a grid."""
        side = 1
        for stage in reversed(self.stages):
            side = stage.min_side(side)
        return side

    @property
    def num_prefix(self) -> tuple[int, ...]:
        """How many tokens of each stage are not on its grid."""
        last = len(self.stages) - 1
        return tuple(
            int(stage.cls_token) + int(self.distilled and index == last)
            for index, stage in enumerate(self.stages)
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """The (stage, block) behind which each map of the feature pyramid is taken.

        One a stage; a network of one stage gives a map behind each block, as timm's ViT does.
        Block -1 is the embedding of a stage without blocks.
        """
        if len(self.stages) == 1 and self.stages[0].depth:
            return tuple((0, block) for block in range(self.stages[0].depth))
        return tuple((index, stage.depth - 1) for index, stage in enumerate(self.stages))

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Pixels between neighbours of each level of the feature pyramid, the extra one too."""
        strides, stride = [], 1
        for row in self.stages:
            stride *= row.embed_stride * row.q_stride
            strides.append(stride)
        extra = (2 * stride,) if self.extra_level else ()
        return (*(strides[stage] for stage, _ in self.levels), *extra)

    @property
    def extra_level_index(self) -> int | None:
        """The index of the level that `extra_level=True` would add; None: there are no stages to
        go on from, or it is there.
        """
        return None if self.extra_level or len(self.stages) == 1 else len(self.levels)

    @property
    def out_indices(self) -> int | tuple[int, ...]:
        """Levels that `features_only` gives by default: all stages, or the last three blocks."""
        if len(self.levels) != len(self.stages):
            return min(3, len(self.levels))
        return tuple(range(len(self.levels) + self.extra_level))

    def drop_path_rates(self) -> tuple[tuple[float, ...], ...]:
        """Returns the rate of stochastic depth of each block of each stage."""
        total, before, rates = sum(stage.depth for stage in self.stages), 0, []
        for stage in self.stages:
            if self.drop_path_schedule == "stage":
                first, steps = 0, stage.depth - 1
            else:
                first, steps = before, total - 1
            rates.append(
                tuple(
                    stage.drop_path_rate * (first + index) / max(steps, 1)
                    for index in range(stage.depth)
                )
            )
            before += stage.depth
        return tuple(rates)
