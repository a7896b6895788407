"""TNT as plain data: one row for its two streams of tokens, JSON there and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cvt.errors import UserError
from cvt.parts.spec import Activation, Pool
from cvt.parts.spec_checks import (
    Channels,
    Classes,
    Depth,
    Epsilon,
    Kernel,
    Rate,
    Ratio,
    Side,
    Width,
    check_fields,
    check_heads,
    image_size,
)
from cvt.plain import check_values, from_plain

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
