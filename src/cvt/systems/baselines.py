"""ResNet (arXiv 1512.03385) and EfficientNet (arXiv 1905.11946), unchanged, out of timm."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cvt.errors import UserError
from cvt.parts.spec import Grid, Pool, Spec
from cvt.plain import Channels, Classes, Rate, Side
from cvt.systems.system import Facts, System

_REDUCTIONS = (2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class BaselineSpec(Spec):
    """A network of timm's, by its name there; `img_size` (H, W) is what it is made for."""

    kind: ClassVar[str] = "baseline"
    network: ClassVar[str] = "cvt.systems.baselines:make_baseline"
    made_by_timm: ClassVar[bool] = True

    architecture: str
    num_classes: Classes = 1000
    in_chans: Channels = 3
    img_size: tuple[Side, Side] = (224, 224)
    global_pool: Pool = "avg"
    drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture not in SIZES:
            raise UserError(
                f"Got architecture {self.architecture!r}, expected one of {', '.join(SIZES)}."
            )
        if self.global_pool == "token":
            raise UserError("Got global_pool 'token' for a network without class token; take avg.")

    @property
    def first_conv(self) -> str:
        """The name that timm gives it."""
        return "conv1" if self.architecture.startswith("resnet") else "conv_stem"

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The one name that timm gives it."""
        return ("fc",) if self.architecture.startswith("resnet") else ("classifier",)

    def grids(self, size: Grid) -> list[Grid]:
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
    def out_indices(self) -> tuple[int, ...]:
        """Levels that `features_only` gives by default."""
        return tuple(range(len(_REDUCTIONS)))


def make_baseline(spec: BaselineSpec, **options: Any) -> Any:
    """Builds timm's network; it gets what ours have besides: its spec, and no prefix tokens.

    Args:
        options: timm's own, such as `pretrained`. With `features_only` its pyramid comes as it is.
    """
    import timm

    network: Any = timm.create_model(
        spec.architecture,
        num_classes=spec.num_classes,
        in_chans=spec.in_chans,
        global_pool=spec.global_pool,
        drop_rate=spec.drop_rate,
        drop_path_rate=spec.drop_path_rate,
        **options,
    )
    if not options.get("features_only"):
        network.spec, network.num_prefix_tokens = spec, 0
        network.in_chans = spec.in_chans
    return network


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
