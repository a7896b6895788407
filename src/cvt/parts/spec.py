"""A network as plain data: one frozen row per stage, JSON there and back, strict about names."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, Protocol, Self, runtime_checkable

from cvt.errors import UserError
from cvt.plain import (
    MOST_STAGES,
    Channels,
    Classes,
    Depth,
    Epsilon,
    Kernel,
    Length,
    Padding,
    Rate,
    Ratio,
    Side,
    Width,
    check_fields,
    check_heads,
    check_values,
    from_plain,
    image_size,
    per_stage,
)

# --- What the plain data of every vision network has in common.


@runtime_checkable
class Spec(Protocol):
    """A network as plain data; every kind of network has a frozen dataclass that is one."""

    @property
    def num_classes(self) -> int: ...
    @property
    def in_chans(self) -> int: ...
    @property
    def img_size(self) -> tuple[int, int]: ...
    @property
    def global_pool(self) -> str: ...
    @property
    def min_size(self) -> int: ...
    @property
    def level_strides(self) -> tuple[int, ...]: ...
    @property
    def extra_level_index(self) -> int | None: ...
    @property
    def out_indices(self) -> int | tuple[int, ...]: ...

    def __hash__(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...
    def change(self, **changes: Any) -> Self: ...
    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]: ...


# --- One stage as plain data: a row of the paper's Table 1, field by field.

Embed = Literal["conv", "t2t", "t2t_performer"]
Projection = Literal["conv", "avg", "linear", "reduction"]
Position = Literal["none", "table", "sinusoid", "conditional"]


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: how tokens are embedded, and the blocks that they pass (paper Tables 1 and 2).

    `embed` is a convolution, or T2T-ViT's soft split and token layer (arXiv 2101.11986, section
    3.1) with full attention (`t2t`) or a performer's (`t2t_performer`); a patch embedding is a
    convolution whose kernel equals its stride, without padding. `embed_norm` puts a LayerNorm
    behind the convolution. A stage of depth 0 is its embedding alone.

    `projection` says how q, k and v are read from the grid: `conv` is the paper's depthwise
    convolution, BatchNorm and linear map; `avg` pools k and v before the linear map; `linear` is
    the position-wise map of ViT, to which kernel and strides do not apply; `reduction` is PVT's,
    which reads k and v from a convolution of kernel and stride `kv_stride` (arXiv 2102.12122,
    section 3.3). `q_stride` above 1 makes the first block read its queries at that stride, so
    that the stage's grid shrinks (MViT, arXiv 2104.11227).

    `pos_embed` is a learned `table`, a frozen `sinusoid`, or `conditional`: CPVT's depthwise
    convolution behind each of the first `peg_depth` blocks (arXiv 2102.10882, section 3.3).
    `drop_path_rate` is reached at the stage's last block, linearly from 0 at its first, unless
    the backbone's schedule says otherwise.
    """

    embed_dim: Width
    depth: Depth
    num_heads: Width
    embed: Embed = "conv"
    embed_kernel: Kernel = 3
    embed_stride: Kernel = 2
    embed_padding: Padding = 1
    embed_norm: bool = True
    mlp_ratio: Ratio = 4.0
    projection: Projection = "conv"
    conv_kernel: Kernel = 3
    q_stride: Kernel = 1
    kv_stride: Kernel = 2
    qkv_bias: bool = True
    cls_token: bool = False
    pos_embed: Position = "none"
    peg_depth: Width = 1
    proj_drop_rate: Rate = 0.0
    attn_drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0

    def __post_init__(self) -> None:
        check_values(self, "a stage")
        check_heads(self)
        if self.projection in ("conv", "avg") and self.conv_kernel % 2 == 0:
            raise UserError(f"conv_kernel={self.conv_kernel} must be odd to keep the grid.")
        if self.projection != "conv" and self.q_stride > 1:
            raise UserError(
                f"q_stride={self.q_stride} needs projection='conv', got {self.projection!r}."
            )

    def grid_after_embed(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) that the embedding makes of a map of this size."""
        return _conv_grid(size, self.embed_kernel, self.embed_stride, self.embed_padding)

    def grid_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) that leaves the stage for a map of this size."""
        grid = self.grid_after_embed(size)
        if self.q_stride == 1:
            return grid
        return _conv_grid(grid, self.conv_kernel, self.q_stride, self.conv_kernel // 2)

    def kv_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) of keys and values read from a grid of this size."""
        if self.projection == "linear":
            return grid
        if self.projection == "reduction":
            return _conv_grid(grid, self.kv_stride, self.kv_stride, 0)
        return _conv_grid(
            grid,
            self.conv_kernel,
            self.kv_stride,
            self.conv_kernel // 2,
            ceil=self.projection == "avg",
        )

    def min_side(self, side: int) -> int:
        """Returns the least side of the incoming map that leaves one of at least `side`."""
        side = (side - 1) * self.q_stride + 1
        if self.projection == "reduction" and self.depth:
            side = max(side, self.kv_stride)
        window = (side - 1) * self.embed_stride + self.embed_kernel
        return max(window - 2 * self.embed_padding, 1)


def _conv_grid(
    size: tuple[int, int], kernel: int, stride: int, padding: int, ceil: bool = False
) -> tuple[int, int]:
    """Output size of a convolution or pooling, as torch computes it; 0 or less: none."""

    def side(n: int) -> int:
        span = n + 2 * padding - kernel
        if not ceil:
            return span // stride + 1
        out = math.ceil(span / stride) + 1
        return out - 1 if (out - 1) * stride >= n + padding else out

    return side(size[0]), side(size[1])


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


# --- TNT as plain data: one row for its two streams of tokens, JSON there and back.

KIND = "tnt"


@dataclass(frozen=True, kw_only=True)
class TNTSpec:
    """Transformer in Transformer (arXiv 2103.00112): patches as tokens, and words within each.

    `embed_dim`, `depth`, `num_heads` and `patch_size` (pixels) are those of the outer, ViT-like
    network. Each patch, cut out by itself, becomes a grid of words of `inner_dim` channels by a
    convolution of kernel `inner_kernel` (odd, padded by half of it) and stride `inner_stride`
    pixels; they attend to each other with `inner_heads` heads. `mlp_ratio`, `qkv_bias`,
    `act_layer` and `norm_eps` hold for both. `img_size` (H, W) is read by the position table of
    the patches only. `drop_path_rate` is reached at the last block, linearly from 0 at the first.
    """

    embed_dim: Width
    depth: Depth
    num_heads: Width
    inner_dim: Width
    inner_heads: Width
    patch_size: Kernel = 16
    inner_kernel: Kernel = 7
    inner_stride: Kernel = 4
    mlp_ratio: Ratio = 4.0
    qkv_bias: bool = False
    act_layer: Activation = "gelu"
    norm_eps: Epsilon = 1e-5
    num_classes: Classes = 1000
    in_chans: Channels = 3
    img_size: tuple[Side, Side] = (224, 224)
    global_pool: Pool = "token"
    drop_rate: Rate = 0.0
    pos_drop_rate: Rate = 0.0
    proj_drop_rate: Rate = 0.0
    attn_drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", image_size(self.img_size))
        check_values(self, "the model")
        if not self.depth:
            raise UserError("Got depth 0 for the model, expected at least one block.")
        check_heads(self)
        check_heads(self, "inner_dim", "inner_heads")
        if self.inner_kernel % 2 == 0:
            raise UserError(f"inner_kernel={self.inner_kernel} must be odd to keep the grid.")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dumps` takes and `from_dict` reads."""
        return {"kind": KIND, **asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TNTSpec":
        """Rebuilds a spec from `to_dict`'s data.

        Raises:
            UserError: Another kind of network, an unknown key (the nearest is named), a missing
                one, or a wrong value.
        """
        own = dict(plain)
        kind = own.pop("kind", KIND)
        if kind != KIND:
            raise UserError(f"Got a spec of kind {kind!r}, expected {KIND!r} for this network.")
        return from_plain(cls, own, "the spec")

    def change(self, **changes: Any) -> "TNTSpec":
        """Returns a copy with fields replaced.

        Raises:
            UserError: An unknown field (the nearest is named), or a wrong value.
        """
        check_fields(changes, {field.name for field in fields(TNTSpec)})
        return replace(self, **changes)

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns the (H, W) of the patches of an image of this size, as the only level.

        What is left over at the right and below, less than a patch, is not read.

        Raises:
            UserError: The image is smaller than a patch.
        """
        grid = size[0] // self.patch_size, size[1] // self.patch_size
        if min(grid) < 1:
            raise UserError(
                f"An image of {size[0]}x{size[1]} pixels is too small: it has no whole patch; "
                f"the smallest side is {self.min_size} pixels."
            )
        return [grid]

    @property
    def min_size(self) -> int:
        """The smallest side of an image, in pixels: one patch."""
        return self.patch_size

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Pixels between neighbours of each level of the feature pyramid: one a block."""
        return (self.patch_size,) * self.depth

    @property
    def extra_level_index(self) -> None:
        """It has no extra level to give."""
        return None

    @property
    def out_indices(self) -> int:
        """Levels that `features_only` gives by default: the last three blocks."""
        return min(3, self.depth)

    @property
    def word_grid(self) -> tuple[int, int]:
        """The (H, W) of the words of a patch."""
        side = (self.patch_size - 1) // self.inner_stride + 1
        return side, side
