"""A network as plain data: one frozen row per stage, JSON there and back, strict about names."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from cvt.errors import UserError, did_you_mean

Projection = Literal["conv", "avg", "linear"]
Position = Literal["none", "table"]
Activation = Literal["quick_gelu", "gelu", "silu", "relu"]
Scale = Literal["dim", "head_dim"]
Pool = Literal["token", "avg", ""]


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: how tokens are embedded, and the blocks that they pass (paper Table 2).

    `projection` says how q, k and v are read from the grid: `conv` is the paper's depthwise
    convolution, BatchNorm and linear map; `avg` pools k and v before the linear map; `linear` is
    the position-wise map of ViT, to which kernel and strides do not apply. A patch embedding is
    one whose kernel equals its stride, without padding. `q_stride` above 1 makes the first block
    read its queries at that stride, so that the stage's grid shrinks (MViT, arXiv 2104.11227).
    `drop_path_rate` is reached at the stage's last block, linearly from 0 at its first.
    """

    embed_dim: int
    depth: int
    num_heads: int
    embed_kernel: int = 3
    embed_stride: int = 2
    embed_padding: int = 1
    mlp_ratio: float = 4.0
    projection: Projection = "conv"
    conv_kernel: int = 3
    q_stride: int = 1
    kv_stride: int = 2
    qkv_bias: bool = True
    cls_token: bool = False
    pos_embed: Position = "none"
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "embed_kernel", "embed_stride"):
            _check_count(self, name, 1)
        for name in ("conv_kernel", "q_stride", "kv_stride"):
            _check_count(self, name, 1)
        _check_count(self, "embed_padding", 0)
        for name in ("proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
            _check_rate(self, name)
        _check_choice(self, "projection", Projection)
        _check_choice(self, "pos_embed", Position)
        _check_flag(self, "qkv_bias")
        _check_flag(self, "cls_token")
        if not isinstance(self.mlp_ratio, int | float) or self.mlp_ratio <= 0:
            raise UserError(f"mlp_ratio={self.mlp_ratio!r} must be a number above 0.")
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"embed_dim={self.embed_dim} does not divide into num_heads={self.num_heads}; "
                "choose a number of heads that divides the width."
            )
        if self.projection != "linear" and self.conv_kernel % 2 == 0:
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
        return _conv_grid(grid, self.conv_kernel, self.q_stride, self.conv_kernel // 2)

    def kv_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Returns the (H, W) of keys and values read from a grid of this size."""
        if self.projection == "linear":
            return grid
        return _conv_grid(
            grid,
            self.conv_kernel,
            self.kv_stride,
            self.conv_kernel // 2,
            ceil=self.projection == "avg",
        )


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A whole network: its stages, and the choices that hold for all of them.

    `attn_scale` is what the logits are multiplied by: `dim` is CvT's `embed_dim ** -0.5`,
    `head_dim` everybody else's. `img_size` (H, W) is read by position tables only.
    `extra_level` adds a stride-32 map, pooled from the last stage, to the feature pyramid.
    """

    stages: tuple[StageSpec, ...]
    num_classes: int = 1000
    in_chans: int = 3
    img_size: tuple[int, int] = (224, 224)
    global_pool: Pool = "token"
    act_layer: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    attn_scale: Scale = "dim"
    drop_rate: float = 0.0
    extra_level: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("A backbone needs at least one stage, got none.")
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "img_size", _pair(self.img_size))
        _check_count(self, "num_classes", 0)
        _check_count(self, "in_chans", 1)
        _check_choice(self, "global_pool", Pool)
        _check_choice(self, "act_layer", Activation)
        _check_choice(self, "attn_scale", Scale)
        _check_flag(self, "extra_level")
        _check_rate(self, "drop_rate")
        if self.global_pool == "token" and not self.stages[-1].cls_token:
            raise UserError(
                "global_pool='token' needs a class token in the last stage; "
                "set cls_token there, or global_pool='avg'."
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
        _check_keys(plain, cls)
        stages = plain.get("stages")
        if not isinstance(stages, list | tuple) or not all(isinstance(s, Mapping) for s in stages):
            raise UserError("A spec needs 'stages': a list with one mapping a stage.")
        for stage in stages:
            _check_keys(stage, StageSpec)
        whole: dict[str, Any] = {**plain, "stages": tuple(StageSpec(**row) for row in stages)}
        return cls(**whole)

    def change(self, **changes: Any) -> "BackboneSpec":
        """Returns a copy with fields replaced; a stage's field may be named directly.

        A stage's field given one value is set in every stage, given a list or tuple in each:
        `spec.change(kv_stride=1, projection=("linear", "conv", "conv"))`. Taking the class token
        away also turns token pooling into mean pooling, the only one left.

        Raises:
            UserError: An unknown field (the nearest is named), or a list of another length.
        """
        of_stage = {field.name for field in fields(StageSpec)}
        of_whole = {field.name for field in fields(BackboneSpec)}
        for name in changes:
            if name not in of_stage | of_whole:
                hint = did_you_mean(name, of_stage | of_whole)
                raise UserError(f"Unknown field {name!r} of a model.{hint}")
        stages = changes.get("stages", self.stages)
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
        if not stages[-1].cls_token and self.global_pool == "token":
            whole.setdefault("global_pool", "avg")
        return replace(self, **whole)

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns each stage's (H, W) for an image of this size.

        Raises:
            UserError: The image is too small for a stage's embedding.
        """
        grids = []
        for number, stage in enumerate(self.stages, start=1):
            inner = stage.grid_after_embed(grids[-1] if grids else size)
            if min(inner) < 1:
                raise UserError(
                    f"An image of {size[0]}x{size[1]} pixels is too small: stage {number} has "
                    f"no grid left; the smallest side is {self.min_size} pixels."
                )
            grids.append(stage.grid_after(grids[-1] if grids else size))
        return grids

    @property
    def min_size(self) -> int:
        """The smallest side of an image, in pixels, that leaves every stage a grid."""
        side = 1
        for stage in reversed(self.stages):
            side = (side - 1) * stage.q_stride + 1
            window = (side - 1) * stage.embed_stride + stage.embed_kernel
            side = max(window - 2 * stage.embed_padding, 1)
        return side


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


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"img_size={value!r} must be a side or (height, width) in pixels.")
    return pair


def _per_stage(name: str, value: Any, num_stages: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value] * num_stages
    if len(value) != num_stages:
        raise UserError(
            f"{name}={value!r} has {len(value)} values for {num_stages} stages; "
            "give one for all or one for each."
        )
    return list(value)


def _check_keys(plain: Mapping[str, Any], spec: type[StageSpec] | type[BackboneSpec]) -> None:
    known = {field.name for field in fields(spec)}
    for name in plain:
        if name not in known:
            raise UserError(f"Unknown key {name!r} in a spec.{did_you_mean(name, known)}")


def _check_count(spec: Any, name: str, least: int) -> None:
    value = getattr(spec, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}.")


def _check_rate(spec: Any, name: str) -> None:
    value = getattr(spec, name)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}={value!r} must be a probability between 0 and 1.")


def _check_flag(spec: Any, name: str) -> None:
    if not isinstance(getattr(spec, name), bool):
        raise UserError(f"{name}={getattr(spec, name)!r} must be true or false.")


def _check_choice(spec: Any, name: str, choices: Any) -> None:
    value, options = getattr(spec, name), get_args(choices)
    if value not in options:
        hint = did_you_mean(str(value), options)
        raise UserError(f"{name}={value!r} is not one of {', '.join(map(repr, options))}.{hint}")
