"""Weights by name: the seven checkpoints that Microsoft published, and those that come along.

No 22k-class checkpoint was ever released: "22k" tells the pre-training, every head has the 1000
classes of ImageNet-1k. Names are those of timm's pull request 2176.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cvt.weights.record import Preprocessing

LICENCE = "apache-2.0 (hub card); MIT (microsoft/CvT)"

# The short side becomes 256 and the middle 224x224 is kept, or all is squashed to 384x384.
AT_224 = Preprocessing(input_size=(3, 224, 224), crop_pct=0.875, crop_mode="center")
AT_384 = Preprocessing(input_size=(3, 384, 384), crop_pct=1.0, crop_mode="squash")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published checkpoint.

    Args:
        name: `model.tag`, as timm writes it.
        model: The row that it belongs to.
        file_name: What Microsoft's own `.pth` is called.
        top1: ImageNet-1k validation accuracy in percent, as `top1_by` reports it.
        others: Top-1 that others measured with the same weights, by who reports it.
    """

    name: str
    model: str
    hub_id: str
    file_name: str
    data: str
    preprocessing: Preprocessing
    top1: float
    others: Mapping[str, float]
    top1_by: str = "paper, Table 3"
    licence: str = LICENCE


def _published(model: str, tag: str, top1: float, others: dict[str, float]) -> Published:
    """Spells hub id and file name out of the pieces that all seven share."""
    short = model.removeprefix("cvt_")
    size = 384 if tag.endswith("_384") else 224
    on_22k = "in22k" in tag
    hub_id = f"microsoft/cvt-{short}" + ("-384" if size == 384 else "") + ("-22k" if on_22k else "")
    return Published(
        name=f"{model}.{tag}",
        model=model,
        hub_id=hub_id,
        file_name=f"CvT-{short}-{size}x{size}-IN-{'22k' if on_22k else '1k'}.pth",
        data="ImageNet-22k, then ImageNet-1k" if on_22k else "ImageNet-1k",
        preprocessing=AT_384 if size == 384 else AT_224,
        top1=top1,
        others=others,
    )


PADDLE, PASSL, TIMM_PR = "PaddleViT", "PASSL", "timm pull request 2176"
AT_1K, AT_1K_384, AT_22K_384 = "msft_in1k", "msft_in1k_384", "msft_in22k_ft_in1k_384"

PUBLISHED: dict[str, Published] = {
    each.name: each
    for each in (
        _published("cvt_13", AT_1K, 81.6, {PADDLE: 81.59, PASSL: 81.59, TIMM_PR: 81.678}),
        _published("cvt_13", AT_1K_384, 83.0, {PADDLE: 83.00}),
        _published("cvt_13", AT_22K_384, 83.3, {PADDLE: 83.26, PASSL: 82.90}),
        _published("cvt_21", AT_1K, 82.5, {PADDLE: 82.46, PASSL: 82.46}),
        _published("cvt_21", AT_1K_384, 83.3, {PADDLE: 83.27}),
        _published("cvt_21", AT_22K_384, 84.9, {PADDLE: 84.91, PASSL: 84.63}),
        _published(
            "cvt_w24", AT_22K_384, 87.7, {"microsoft/CvT README": 87.6, PADDLE: 87.58, PASSL: 87.39}
        ),
    )
}


# --- Ours, which come with the library: each has a folder with its card and its curves.

DEMO = "demo"
"""The best of them: what predicts where no checkpoint is named."""

_SHIPPED = Path(__file__).with_name("shipped")
SHIPPED: dict[str, Path] = {
    each.name: each / "model.safetensors" for each in sorted(_SHIPPED.iterdir())
}
_BEST = "cvt_micro_96.tiny_imagenet"


def shipped_file(name: str) -> Path | None:
    """Returns the file of weights that come along, by their name or as `demo`."""
    return SHIPPED.get(_BEST if name == DEMO else name)


# --- Finding what others published.


def find_published(name: str) -> Published | None:
    """Returns the checkpoint of this published name or hub id, if there is one."""
    return next((each for each in PUBLISHED.values() if name in (each.name, each.hub_id)), None)


def published_file(file_name: str) -> Published | None:
    """Returns the checkpoint that Microsoft published under this file name, if there is one.

    Copies of the files differ in upper and lower case, so that is not looked at.
    """
    lower = file_name.lower()
    return next((each for each in PUBLISHED.values() if each.file_name.lower() == lower), None)


@cache
def imagenet_class_names(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """Returns the class names of ImageNet-1k, or a larger set, in the order of the heads.

    They come from timm, offline, which names the sets too.
    """
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo(subset).label_descriptions())
