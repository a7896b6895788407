"""ResNet (arXiv 1512.03385) and EfficientNet (arXiv 1905.11946), unchanged, out of timm."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from cvt.errors import UserError
from cvt.parts import Grid
from cvt.parts.spec import Pool, Spec
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
        return "conv1" if self.architecture.startswith("resnet") else "conv_stem"

    @property
    def classifiers(self) -> tuple[str, ...]:
        return ("fc",) if self.architecture.startswith("resnet") else ("classifier",)

    def grids(self, size: Grid) -> list[Grid]:
        """Returns the (H, W) of the five maps of an image of this size."""
        return [(-(-size[0] // each), -(-size[1] // each)) for each in _REDUCTIONS]

    @property
    def min_size(self) -> int:
        return 1  # its convolutions are padded

    @property
    def level_strides(self) -> tuple[int, ...]:
        return _REDUCTIONS

    @property
    def out_indices(self) -> tuple[int, ...]:
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


_facts = partial(Facts, source="torchvision's weight metadata (IMAGENET1K_V1)")

SIZES = {
    **{f"resnet{depth}": 224 for depth in (18, 34, 50, 101, 152)},
    **{
        f"efficientnet_b{number}": size
        for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
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
        "resnet18": _facts(11_689_512, 1.814, top1=69.76),
        "resnet34": _facts(21_797_672, 3.664, top1=73.31),
        "resnet50": _facts(25_557_032, 4.089, top1=76.13),
        "resnet101": _facts(44_549_160, 7.801, top1=77.37),
        "resnet152": _facts(60_192_808, 11.514, top1=78.31),
    },
)

EFFICIENTNET = System(
    name="EfficientNet",
    paper="Tan and Le, ICML 2019, arXiv 1905.11946",
    rows=_rows("efficientnet"),
    facts={
        "efficientnet_b0": _facts(5_288_548, top1=77.69),
        "efficientnet_b1": _facts(7_794_184, top1=78.64),
        "efficientnet_b2": _facts(9_109_994, top1=80.61),
        "efficientnet_b3": _facts(12_233_232, top1=82.01),
        "efficientnet_b4": _facts(19_341_616, top1=83.38),
        "efficientnet_b5": _facts(30_389_784, top1=83.44),
        "efficientnet_b6": _facts(43_040_704, top1=84.01),
        "efficientnet_b7": _facts(66_347_960, top1=84.12),
    },
)
