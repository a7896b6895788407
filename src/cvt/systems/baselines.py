"""ResNet (arXiv 1512.03385) and EfficientNet (arXiv 1905.11946), unchanged, out of timm."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cvt.errors import UserError
from cvt.parts.spec import Pool
from cvt.plain import (
    Channels,
    Classes,
    Rate,
    Side,
    check_fields,
    check_values,
    from_plain,
    image_size,
)
from cvt.systems.system import Facts, System

KIND = "baseline"
_REDUCTIONS = (2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class BaselineSpec:
    """A network of timm's, by its name there; `img_size` (H, W) is what it is made for."""

    architecture: str
    num_classes: Classes = 1000
    in_chans: Channels = 3
    img_size: tuple[Side, Side] = (224, 224)
    global_pool: Pool = "avg"
    drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "img_size", image_size(self.img_size))
        check_values(self, "the model")
        if self.architecture not in SIZES:
            raise UserError(
                f"Got architecture {self.architecture!r}, expected one of {', '.join(SIZES)}."
            )
        if self.global_pool == "token":
            raise UserError("Got global_pool 'token' for a network without class token; take avg.")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dumps` takes and `from_dict` reads."""
        return {"kind": KIND, **asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "BaselineSpec":
        """Rebuilds a spec from `to_dict`'s data.

        Raises:
            UserError: An unknown key (the nearest is named), a missing one, or a wrong value.
        """
        own = {name: value for name, value in plain.items() if name != "kind"}
        return from_plain(cls, own, "the spec")

    def change(self, **changes: Any) -> "BaselineSpec":
        """Returns a copy with fields replaced.

        Raises:
            UserError: An unknown field (the nearest is named), or a wrong value.
        """
        check_fields(changes, {field.name for field in fields(BaselineSpec)})
        return replace(self, **changes)

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns the (H, W) of the five maps of an image of this size."""
        return [(-(-size[0] // each), -(-size[1] // each)) for each in _REDUCTIONS]

    @property
    def min_size(self) -> int:
        """The smallest side of an image, in pixels: its convolutions are padded."""
        return 1

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Pixels between neighbours of each level of the feature pyramid."""
        return _REDUCTIONS

    @property
    def extra_level_index(self) -> None:
        """It has no extra level to give."""
        return None

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Levels that `features_only` gives by default."""
        return tuple(range(len(_REDUCTIONS)))


def _resnet(num_params: int, gmacs: float, top1: float) -> Facts:
    return Facts(
        num_params=num_params,
        gmacs=gmacs,
        top1=top1,
        source="torchvision's weight metadata (IMAGENET1K_V1)",
    )


def _efficientnet(num_params: int, top1: float) -> Facts:
    source = "torchvision's weight metadata (IMAGENET1K_V1)"
    return Facts(num_params=num_params, top1=top1, source=source)


SIZES = {
    **{f"resnet{depth}": 224 for depth in (18, 34, 50, 101, 152)},
    "efficientnet_b0": 224,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
}


def _rows(family: str) -> dict[str, BaselineSpec]:
    return {
        name: BaselineSpec(architecture=name, img_size=(side, side))
        for name, side in SIZES.items()
        if name.startswith(family)
    }


RESNET = System(
    name="ResNet",
    paper="He et al., CVPR 2016, arXiv 1512.03385",
    rows=_rows("resnet"),
    facts={
        "resnet18": _resnet(11_689_512, 1.814, 69.76),
        "resnet34": _resnet(21_797_672, 3.664, 73.31),
        "resnet50": _resnet(25_557_032, 4.089, 76.13),
        "resnet101": _resnet(44_549_160, 7.801, 77.37),
        "resnet152": _resnet(60_192_808, 11.514, 78.31),
    },
)

EFFICIENTNET = System(
    name="EfficientNet",
    paper="Tan and Le, ICML 2019, arXiv 1905.11946",
    rows=_rows("efficientnet"),
    facts={
        "efficientnet_b0": _efficientnet(5_288_548, 77.69),
        "efficientnet_b1": _efficientnet(7_794_184, 78.64),
        "efficientnet_b2": _efficientnet(9_109_994, 80.61),
        "efficientnet_b3": _efficientnet(12_233_232, 82.01),
        "efficientnet_b4": _efficientnet(19_341_616, 83.38),
        "efficientnet_b5": _efficientnet(30_389_784, 83.44),
        "efficientnet_b6": _efficientnet(43_040_704, 84.01),
        "efficientnet_b7": _efficientnet(66_347_960, 84.12),
    },
)
