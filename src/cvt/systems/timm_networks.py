"""timm's networks as specs, each by its name there; ResNet and EfficientNet are rows of ours too.

What a spec says may come from a stranger's checkpoint: the name has to be that of a network that
timm has, and what its builder is told is plain, bounded, and nothing that leads to files or URLs.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache, partial
from typing import Annotated, Any, ClassVar, Self

from cvt.errors import UserError, did_you_mean, first_line
from cvt.parts import Grid
from cvt.parts.spec import Spec
from cvt.plain import Channels, Classes, Length, Rate, Side
from cvt.systems.system import Facts, System

PREFIX = "timm/"
"""What stands before the name of a network of timm's, which is taken wherever a model's name is."""

OF_BUILDER = (
    *("features_only", "out_indices", "output_stride", "feature_cls"),
    *("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir"),
    *("device", "dtype"),
)
"""What timm's builder takes besides a network's own arguments, from callers; no spec holds it."""

# What else it takes, and nobody is to say here.
NOT_ARGUMENTS = frozenset(OF_BUILDER) | {
    *("pretrained", "checkpoint_path", "scriptable", "exportable", "no_jit", "model_name"),
    *("model_cls", "variant", "model_cfg", "feature_cfg", "pretrained_strict", "pruned", "cfg"),
    *("pretrained_filter_fn", "pretrained_custom_load", "kwargs_filter", "kwargs", "weight_init"),
}
_MOST_ARGUMENTS, _LONGEST, _LARGEST, _DEEPEST = 32, 16, 16384, 512
_COUNTS = re.compile(r"depth|layer|block|repeat|stage|num_(?!features|classes)")


@dataclass(frozen=True, kw_only=True)
class TimmSpec(Spec):
    """A network of timm's, by its name there; what is None is as timm has it.

    `img_size` (H, W) is what it is made for, and built for where it holds for one size only.
    `arguments` are what else the network is told, in timm's words: numbers, words, true, false and
    lists of these.
    """

    kind: ClassVar[str] = "timm"
    network: ClassVar[str] = "cvt.systems.timm_networks:make_timm"
    made_by_timm: ClassVar[bool] = True

    architecture: Annotated[str, Length(1, 100)]
    num_classes: Classes = 1000
    in_chans: Channels = 3
    img_size: tuple[Side, Side] = (224, 224)
    global_pool: Annotated[str, Length(0, 20)] | None = None
    drop_rate: Rate | None = None
    drop_path_rate: Rate | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {each.name for each in fields(self)}
        if len(self.arguments) > _MOST_ARGUMENTS:
            raise UserError(
                f"Got {len(self.arguments)} arguments for {self.family}, expected at most "
                f"{_MOST_ARGUMENTS}."
            )
        plain = {name: _plain(name, value) for name, value in self.arguments.items()}
        for name in plain:
            if name in NOT_ARGUMENTS or name in own or not name.isidentifier():
                raise UserError(
                    f"Got the argument {name!r} for {self.family}, expected those that change the "
                    "network itself, such as patch_size; leave it out."
                )
        object.__setattr__(self, "arguments", plain)

    def change(self, **changes: Any) -> Self:
        """Returns a copy with fields replaced, and all other keywords among the arguments."""
        own = {each.name for each in fields(self)} - {"arguments", "architecture"}
        given = {name: value for name, value in changes.items() if name not in own}
        arguments = {**self.arguments, **given.pop("arguments", {}), **given}
        said = {name: value for name, value in arguments.items() if value is not None}
        return replace(self, arguments=said, **{k: v for k, v in changes.items() if k in own})

    @property
    def family(self) -> str:
        return f"timm's {self.architecture}"

    @property
    def first_conv(self) -> str | None:
        named = _names(_config(self.architecture).get("first_conv"))
        return named[0] if len(named) == 1 else None

    @property
    def classifiers(self) -> tuple[str, ...]:
        return _names(_config(self.architecture).get("classifier"))

    @property
    def is_sized(self) -> bool:
        return takes_img_size(self.architecture)

    def grids(self, size: Grid) -> list[Grid]:
        """Returns the (H, W) of the maps of an image of this size, each once; none if unknown."""
        return [grid for grid, _ in self.levels(size)]

    def widths(self, size: Grid) -> tuple[int, ...]:
        return tuple(width for _, width in self.levels(size))

    def levels(self, size: Grid) -> list[tuple[Grid, int]]:
        """Returns (H, W) and channels of the maps that timm's `forward_intermediates` gives.

        Blocks that leave both as they are count once. An image that the network does not take is
        refused.
        """
        import torch

        network = _on_meta(self)
        image = torch.empty(1, self.in_chans, *size, device="meta")
        try:
            with torch.no_grad():
                if not hasattr(network, "forward_intermediates"):
                    network(image)
                    return []
                maps = network.forward_intermediates(image, intermediates_only=True)
        except Exception as error:  # whatever a network of timm's raises
            made = f"; it is made for {self.img_size[0]}x{self.img_size[1]}" * self.is_sized
            raise UserError(
                f"{self.family} takes no image of {size[0]}x{size[1]} pixels "
                f"({first_line(error)}){made}."
            ) from error
        found = [((fmap.shape[-2], fmap.shape[-1]), fmap.shape[1]) for fmap in maps]
        return list(dict.fromkeys(found))

    @property
    def min_size(self) -> int:
        least = _config(self.architecture).get("min_input_size")
        return min(self.img_size) if self.is_sized else least[-1] if least else 1

    @property
    def level_strides(self) -> tuple[int, ...]:
        return tuple(each["reduction"] for each in getattr(_on_meta(self), "feature_info", ()))

    @property
    def out_indices(self) -> tuple[int, ...]:
        return tuple(range(len(self.level_strides)))


def _plain(name: str, value: Any) -> Any:
    """An argument's value, lists for tuples; refused where it is not plain or beyond all reason."""
    if isinstance(value, list | tuple) and len(value) <= _LONGEST:
        if not any(isinstance(each, list | tuple) for each in value):
            return [_plain(name, each) for each in value]
    elif isinstance(value, bool) or (isinstance(value, str) and len(value) <= 100):
        return value
    elif isinstance(value, int | float):
        most = _DEEPEST if _COUNTS.search(name) else _LARGEST
        if -most <= value <= most:
            return value
    raise UserError(
        f"Got {str(value)[:60]!r} for the argument {name!r} of a network of timm's, expected a "
        f"number of at most {_LARGEST} ({_DEEPEST} where it counts blocks), a word, true or false, "
        f"or up to {_LONGEST} of them."
    )


def _names(named: Any) -> tuple[str, ...]:
    """The modules that a configuration of timm's names, be it none, one or several."""
    return (named,) if isinstance(named, str) else tuple(named or ())


# --- Networks out of specs.


def make_timm(spec: TimmSpec, **options: Any) -> Any:
    """Builds timm's network; it gets what ours have besides: its spec, and its prefix tokens.

    Args:
        options: timm's own, such as `pretrained`. With `features_only` its pyramid comes as it is.
    """
    import timm
    from huggingface_hub.errors import HTTPError

    check_architecture(spec.architecture)
    told: dict[str, Any] = {name: getattr(spec, name) for name in _TOLD}
    told |= {name: tuple(v) if isinstance(v, list) else v for name, v in spec.arguments.items()}
    if spec.is_sized:
        told["img_size"] = spec.img_size
    try:
        network: Any = timm.create_model(spec.architecture, **told, **options)
    except (OSError, HTTPError):  # weights that cannot be had, which whoever asked for them tells
        raise
    except Exception as error:  # whatever a network of timm's raises
        raise _unbuildable(spec, error) from error
    if not options.get("features_only"):
        network.spec, network.in_chans = spec, spec.in_chans
        network.num_prefix_tokens = getattr(network, "num_prefix_tokens", 0)
    return network


_TOLD = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate")


def _unbuildable(spec: TimmSpec, error: Exception) -> UserError:
    said = {name: getattr(spec, name) for name in _TOLD if getattr(spec, name) is not None}
    wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if wrong is None:
        told = ", ".join(f"{name}={value}" for name, value in (said | spec.arguments).items())
        return UserError(f"timm cannot build {spec.architecture!r} with {told}: {error}")
    hint = did_you_mean(wrong[1], {*_arguments_of(spec.architecture), *_TOLD} - {wrong[1]})
    return UserError(f"Unknown argument {wrong[1]!r} of {spec.family}.{hint}")


def _arguments_of(architecture: str) -> list[str]:
    import inspect

    network = type(_on_meta(TimmSpec(architecture=architecture)))
    return [name for name in inspect.signature(network).parameters if name not in NOT_ARGUMENTS]


def _on_meta(spec: TimmSpec) -> Any:
    return _network(json.dumps(spec.to_dict(), sort_keys=True))


@lru_cache(maxsize=8)
def _network(stored: str) -> Any:
    """A network without memory for its weights, in evaluation mode; nobody may change it."""
    import torch

    with torch.device("meta"):
        return make_timm(TimmSpec.from_dict(json.loads(stored))).eval()


@cache
def takes_img_size(architecture: str) -> bool:
    """Whether the network is built for an image size, as ViTs and Swin are."""
    import timm
    import torch

    check_architecture(architecture)
    height, width = _config(architecture)["input_size"][1:]
    try:
        with torch.device("meta"):
            timm.create_model(architecture, img_size=(height, width))
    except TypeError as error:  # how a network that takes images of any size refuses it
        if "img_size" not in str(error):
            raise
        return False
    return True


# --- What timm knows of them.


def timm_row(name: str) -> TimmSpec:
    """Returns the spec of `timm/NAME` or `timm/NAME.TAG`, as timm configures it."""
    cfg = timm_config(name)
    channels, height, width = cfg["input_size"]
    return TimmSpec(
        architecture=split_name(name)[0],
        num_classes=cfg["num_classes"],
        in_chans=channels,
        img_size=(height, width),
    )


def timm_config(name: str) -> Mapping[str, Any]:
    """Returns timm's configuration of `timm/NAME`, of its first weights, or of `timm/NAME.TAG`."""
    import timm

    architecture, tag = split_name(name)
    check_architecture(architecture)
    try:
        return _config(f"{architecture}.{tag}" if tag else architecture)
    except RuntimeError as error:
        known = [PREFIX + each for each in timm.list_pretrained(f"{architecture}.*")]
        raise UserError(
            f"timm has no weights {tag!r} of {architecture!r}.{did_you_mean(name, known, 0)} "
            f"`cvt models '{PREFIX}{architecture}'` lists them."
        ) from error


def split_name(name: str) -> tuple[str, str]:
    """Returns architecture and tag, or "", of `timm/NAME.TAG`."""
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    return architecture, tag


@cache
def _config(name: str) -> Mapping[str, Any]:
    import timm
    from timm.models import PretrainedCfg

    return (timm.get_pretrained_cfg(name) or PretrainedCfg()).to_dict()


def check_architecture(architecture: str) -> None:
    """Refuses what is no network of timm's own, and names the nearest."""
    import timm

    if not timm.is_model(architecture):
        known = [PREFIX + each for each in timm.list_models()]
        raise UserError(
            f"Unknown model '{PREFIX}{architecture}'."
            f"{did_you_mean(PREFIX + architecture, known)} "
            f"`cvt models '{PREFIX}*'` lists timm's."
        )
    if timm.model_entrypoint(architecture).__module__ == "cvt.zoo.timm_models":
        bare = architecture.removeprefix("cvt_")
        raise UserError(
            f"Got '{PREFIX}{architecture}', a network of this library that timm only lists, "
            f"expected one of timm's; ours is {bare if timm.is_model(bare) else architecture!r}."
        )


def timm_names(pattern: str, pretrained: bool = False) -> list[str]:
    """Returns the names of timm's networks, or of its weights, that fit `timm/PATTERN`."""
    import timm

    ours = "cvt.zoo.timm_models"
    lists = timm.list_pretrained if pretrained else timm.list_models
    return [
        PREFIX + name
        for name in lists(pattern.removeprefix(PREFIX))
        if timm.model_entrypoint(name.partition(".")[0]).__module__ != ours
    ]


TIMM = System(
    name="timm", paper="Wightman, PyTorch Image Models, doi 10.5281/zenodo.4414861", rows={}
)
"""What `timm/NAME` belongs to; its networks are asked of timm."""


# --- Those that are rows here, as baselines, with what is published of them.

_facts = partial(Facts, source="torchvision's weight metadata (IMAGENET1K_V1)")

SIZES = {
    **{f"resnet{depth}": 224 for depth in (18, 34, 50, 101, 152)},
    **{
        f"efficientnet_b{number}": size
        for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
}


def _rows(family: str) -> dict[str, TimmSpec]:
    return {
        name: TimmSpec(architecture=name, img_size=(side, side))
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
