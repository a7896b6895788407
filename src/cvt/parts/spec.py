"""A network as plain data: frozen rows of choices, JSON there and back, strict about names.

`Spec` is what every kind of network says of itself; other rooms ask it instead of what kind it is.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from operator import mul
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, cast, runtime_checkable

from cvt.errors import UserError, did_you_mean
from cvt.parts import Grid
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
    check_values,
    from_plain,
    to_plain,
)

Embed = Literal["conv", "t2t", "t2t_performer"]
Projection = Literal["conv", "avg", "linear", "reduction"]
Position = Literal["none", "table", "sinusoid", "conditional"]
Activation = Literal["quick_gelu", "gelu", "silu", "relu"]
Scale = Literal["dim", "head_dim"]
Pool = Literal["token", "avg", ""]
Interpolation = Literal["bicubic", "bicubic_no_antialias", "bilinear"]
Schedule = Literal["stage", "network"]


@dataclass(frozen=True)
class Axes:
    """A line of the paper's Table 1, in its words."""

    position: str
    embedding: str
    projection: str
    hierarchical: str


@runtime_checkable
class Spec(Protocol):
    """A network as plain data: what each kind's frozen dataclass, a subclass, says of itself.

    What most networks have in common stands here; the rest is for each kind to say.
    """

    kind: ClassVar[str]
    """What `to_dict` calls it; empty for a network of stages."""

    network: ClassVar[str]
    """`module:callable` that builds the network from the spec; that module imports torch."""

    made_by_timm: ClassVar[bool] = False
    """Whether timm builds the network, and has its weights."""

    @property
    def num_classes(self) -> int: ...
    @property
    def in_chans(self) -> int: ...
    @property
    def img_size(self) -> Grid: ...
    @property
    def global_pool(self) -> str | None:
        """How tokens are pooled, "" for not at all; None: as the network does it of itself."""

    @property
    def family(self) -> str:
        """What no change of a field changes: the kind of network, or timm's name for it."""
        return self.kind or "stages"

    @property
    def distilled(self) -> bool:
        """Whether there is a distillation token, with a classifier of its own."""
        return False

    @property
    def pos_interpolation(self) -> Interpolation:
        """How position tables are resized."""
        return "bicubic"

    @property
    def staged(self) -> "BackboneSpec | None":
        """Itself, where the network is made of stages."""
        return None

    @property
    def axes(self) -> Axes | None:
        """Its line of the paper's Table 1; None for a network without tokens (a CNN)."""
        return None

    @property
    def first_conv(self) -> str | None:
        """The name of the convolution that reads the image; None where no convolution does."""

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The names of the classifiers, two with distillation."""
        return ("head", "head_dist") if self.distilled else ("head",)

    def tables(self, size: Grid) -> dict[str, tuple[Grid, int]]:
        """Returns grid and number of prefix tokens of each position table at an image size."""
        return {}

    @property
    def is_sized(self) -> bool:
        """Whether something in the network is made for an image size."""
        return bool(self.tables(self.img_size))

    @property
    def min_size(self) -> int:
        """The smallest side of an image, in pixels."""

    def grids(self, size: Grid) -> list[Grid]:
        """Returns the (H, W) of each stage for an image of this size, which may be too small."""

    def widths(self, size: Grid) -> tuple[int, ...]:
        """Returns the channels of the maps of `grids`, where the spec itself does not say them."""
        return ()

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Pixels between neighbours of each level of the feature pyramid."""

    @property
    def out_indices(self) -> int | tuple[int, ...]:
        """Levels that `features_only` gives by default, or how many of the last ones."""

    @property
    def extra_level_index(self) -> int | None:
        """The index of the level that `extra_level=True` would add; None: there is none to add."""
        return None

    def __post_init__(self) -> None:
        """Checks every field; an image size may be given as one side."""
        if isinstance(self.img_size, int):
            object.__setattr__(self, "img_size", (self.img_size, self.img_size))
        check_values(self, "the model")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dumps` takes and `from_dict` reads."""
        return ({"kind": self.kind} if self.kind else {}) | to_plain(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuilds a spec from `to_dict`'s data."""
        own = dict(plain)
        kind = own.pop("kind", cls.kind)
        if kind != cls.kind:
            raise UserError(f"Got a spec of kind {kind!r}, expected {cls.kind!r} for this network.")
        return from_plain(cls, own, "the spec")

    def change(self, **changes: Any) -> Self:
        """Returns a copy with fields replaced."""
        _check_fields(changes, {each.name for each in fields(cast("Any", self))})
        return replace(cast("Any", self), **changes)


def _check_fields(changes: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses a change of a field that a model does not have (the nearest is named)."""
    for name in changes:
        if name not in known:
            raise UserError(f"Unknown field {name!r} of a model.{did_you_mean(name, known)}")


def _check_heads(spec: Any, dim: str = "embed_dim", heads: str = "num_heads") -> None:
    """Refuses a width that its heads cannot share."""
    if getattr(spec, dim) % getattr(spec, heads):
        raise UserError(
            f"{dim}={getattr(spec, dim)} does not divide into {heads}={getattr(spec, heads)}; "
            "choose a number of heads that divides the width."
        )


# Networks of stages: a row of the paper's Table 1, field by field.


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
        _check_heads(self)
        if self.projection in ("conv", "avg") and self.conv_kernel % 2 == 0:
            raise UserError(f"conv_kernel={self.conv_kernel} must be odd to keep the grid.")
        if self.projection != "conv" and self.q_stride > 1:
            raise UserError(
                f"q_stride={self.q_stride} needs projection='conv', got {self.projection!r}."
            )

    def grid_after_embed(self, size: Grid) -> Grid:
        """Returns the (H, W) that the embedding makes of a map of this size."""
        return _conv_grid(size, self.embed_kernel, self.embed_stride, self.embed_padding)

    def grid_after(self, size: Grid) -> Grid:
        """Returns the (H, W) that leaves the stage for a map of this size."""
        grid = self.grid_after_embed(size)
        if self.q_stride == 1:
            return grid
        return _conv_grid(grid, self.conv_kernel, self.q_stride, self.conv_kernel // 2)

    def kv_grid(self, grid: Grid) -> Grid:
        """Returns the (H, W) of keys and values read from a grid of this size."""
        if self.projection == "linear":
            return grid
        if self.projection == "reduction":
            return _conv_grid(grid, self.kv_stride, self.kv_stride, 0)
        kernel, is_ceil = self.conv_kernel, self.projection == "avg"
        return _conv_grid(grid, kernel, self.kv_stride, kernel // 2, ceil=is_ceil)

    def min_side(self, side: int) -> int:
        """Returns the least side of the incoming map that leaves one of at least `side`."""
        side = (side - 1) * self.q_stride + 1
        if self.projection == "reduction" and self.depth:
            side = max(side, self.kv_stride)
        window = (side - 1) * self.embed_stride + self.embed_kernel
        return max(window - 2 * self.embed_padding, 1)


def _conv_grid(size: Grid, kernel: int, stride: int, padding: int, ceil: bool = False) -> Grid:
    """Output size of a convolution or pooling, as torch computes it; 0 or less: none."""

    def side(n: int) -> int:
        span = n + 2 * padding - kernel
        if not ceil:
            return span // stride + 1
        out = math.ceil(span / stride) + 1
        return out - 1 if (out - 1) * stride >= n + padding else out

    return side(size[0]), side(size[1])


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
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

    kind: ClassVar[str] = ""
    network: ClassVar[str] = "cvt.parts.backbone:Backbone"

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
        super().__post_init__()
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

    def change(self, **changes: Any) -> Self:
        """Returns a copy with fields replaced; a stage's field may be named directly.

        A stage's field given one value is set in every stage, given a list or tuple in each:
        `spec.change(kv_stride=1, projection=("linear", "conv", "conv"))`. Taking the class token
        away also turns token pooling into mean pooling, the only one left; asking for a
        distillation token puts a class token beside it, in the last stage, and pools from them.
        """
        of_stage = {field.name for field in fields(StageSpec)}
        of_whole = {field.name for field in fields(BackboneSpec)}
        _check_fields(changes, of_stage | of_whole)
        stages = changes.get("stages", self.stages)
        if not isinstance(stages, list | tuple) or not all(
            isinstance(each, StageSpec) for each in stages
        ):
            raise UserError(f"Got stages={stages!r}, expected a list with one StageSpec a stage.")
        columns = {
            name: _per_stage(name, value, len(stages))
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

    @property
    def staged(self) -> "BackboneSpec":
        return self

    @property
    def axes(self) -> Axes:
        positions = {stage.pos_embed for stage in self.stages}
        has_table = bool(positions & {"table", "sinusoid"})
        generated = "no (with PE generator)" if "conditional" in positions else "no"
        # Blocks on several grids are a hierarchy; embeddings alone are one of tokenisation.
        is_hierarchical = sum(stage.depth > 0 for stage in self.stages) > 1
        tokenised = "partial (tokenisation)" if len(self.stages) > 1 else "no"
        return Axes(
            position="yes" if has_table else generated,
            embedding=_embedding(self.stages),
            projection=_projection(self.stages),
            hierarchical="yes" if is_hierarchical else tokenised,
        )

    @property
    def first_conv(self) -> str | None:
        return "stages.0.embed.proj" if self.stages[0].embed == "conv" else None

    def tables(self, size: Grid) -> dict[str, tuple[Grid, int]]:
        return {
            f"stages.{index}.pos_embed.table": (row.grid_after_embed(incoming), num_prefix)
            for index, (row, incoming, num_prefix) in enumerate(
                zip(self.stages, self.incoming(size), self.num_prefix, strict=True)
            )
            if row.pos_embed in ("table", "sinusoid")
        }

    def incoming(self, size: Grid) -> list[Grid]:
        """Returns the (H, W) of the map that each stage gets of an image of this size."""
        return [size, *self.grids(size)[:-1]]

    def grids(self, size: Grid) -> list[Grid]:
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
        strides = list(accumulate((row.embed_stride * row.q_stride for row in self.stages), mul))
        extra = (2 * strides[-1],) if self.extra_level else ()
        return (*(strides[stage] for stage, _ in self.levels), *extra)

    @property
    def extra_level_index(self) -> int | None:
        return None if self.extra_level or len(self.stages) == 1 else len(self.levels)

    @property
    def out_indices(self) -> int | tuple[int, ...]:
        if len(self.levels) != len(self.stages):
            return min(3, len(self.levels))
        return tuple(range(len(self.levels) + self.extra_level))

    def drop_path_rates(self) -> tuple[tuple[float, ...], ...]:
        """Returns the rate of stochastic depth of each block of each stage."""
        total, before, rates = sum(stage.depth for stage in self.stages), 0, []
        for stage in self.stages:
            by_stage = self.drop_path_schedule == "stage"
            first, steps = (0, stage.depth - 1) if by_stage else (before, total - 1)
            blocks = range(first, first + stage.depth)
            rates.append(tuple(stage.drop_path_rate * each / max(steps, 1) for each in blocks))
            before += stage.depth
        return tuple(rates)


def _per_stage(name: str, value: Any, num_stages: int) -> list[Any]:
    """One value a stage, of one for all or a list with one each."""
    if not isinstance(value, list | tuple):
        return [value] * num_stages
    if len(value) != num_stages:
        raise UserError(
            f"{name}={value!r} has {len(value)} values for {num_stages} stages; "
            "give one for all or one for each."
        )
    return list(value)


# The words of Table 1 for how the stages embed and project.

_PROJECTIONS = {
    "linear": "linear",
    "conv": "convolution",
    "avg": "average pooling",
    "reduction": "spatial reduction",
}


def _embedding(stages: tuple[StageSpec, ...]) -> str:
    if any(stage.embed != "conv" for stage in stages):
        return "overlapping (concatenate)"
    if any(stage.embed_kernel > stage.embed_stride for stage in stages):
        return "overlapping (convolution)"
    return "non-overlapping"


def _projection(stages: tuple[StageSpec, ...]) -> str:
    """Names what is not linear; PVT's last stage, whose reduction is by 1, does not count."""
    kinds = {
        stage.projection: None
        for stage in stages
        if stage.depth and (stage.projection != "reduction" or stage.kv_stride > 1)
    }
    special = [kind for kind in kinds if kind != "linear"]
    return " and ".join(_PROJECTIONS[kind] for kind in special or ["linear"])


# TNT: one row for its two streams of tokens.


@dataclass(frozen=True, kw_only=True)
class TNTSpec(Spec):
    """Transformer in Transformer (arXiv 2103.00112): patches as tokens, and words within each.

    `embed_dim`, `depth`, `num_heads` and `patch_size` (pixels) are those of the outer, ViT-like
    network. Each patch, cut out by itself, becomes a grid of words of `inner_dim` channels by a
    convolution of kernel `inner_kernel` (odd, padded by half of it) and stride `inner_stride`
    pixels; they attend to each other with `inner_heads` heads. `mlp_ratio`, `qkv_bias`,
    `act_layer` and `norm_eps` hold for both. `img_size` (H, W) is read by the position table of
    the patches only. `drop_path_rate` is reached at the last block, linearly from 0 at the first.
    """

    kind: ClassVar[str] = "tnt"
    network: ClassVar[str] = "cvt.parts.tnt:TNT"

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
        super().__post_init__()
        if not self.depth:
            raise UserError("Got depth 0 for the model, expected at least one block.")
        _check_heads(self)
        _check_heads(self, "inner_dim", "inner_heads")
        if self.inner_kernel % 2 == 0:
            raise UserError(f"inner_kernel={self.inner_kernel} must be odd to keep the grid.")

    @property
    def axes(self) -> Axes:
        # Patches are cut out first: the kernel of the words inside one ends at its border.
        return Axes(
            position="yes",
            embedding="non-overlapping (patch + pixel)",
            projection="linear",
            hierarchical="no",
        )

    @property
    def first_conv(self) -> str:
        return "word_embed.proj"

    def tables(self, size: Grid) -> dict[str, tuple[Grid, int]]:
        return {"pos_embed.table": (self.grids(size)[0], 1)}

    def grids(self, size: Grid) -> list[Grid]:
        """Returns the (H, W) of the patches of an image of this size, as the only level.

        What is left over at the right and below, less than a patch, is not read.
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
        return self.patch_size

    @property
    def level_strides(self) -> tuple[int, ...]:
        return (self.patch_size,) * self.depth

    @property
    def out_indices(self) -> int:
        return min(3, self.depth)

    @property
    def word_grid(self) -> Grid:
        """The (H, W) of the words of a patch."""
        side = (self.patch_size - 1) // self.inner_stride + 1
        return side, side
