"""What a system is to this library: its rows, what is published of them, whose weights load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cvt.parts.contract_spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a row, for ImageNet's 1000 classes at the row's own image size.

    Args:
        num_params: Exact count, what is never trained included, as `num_params` counts.
        num_frozen: Those of them that are never trained: sinusoids and random features.
        gmacs: Billions of multiply-accumulates, to three digits, where an independent count of
            the authors' or the judge's code is at hand.
        published_params: Millions, with the digits that are printed.
        published_gmacs: What papers call FLOPs, with the digits that are printed.
        top1: Accuracy on ImageNet-1k's validation images in percent.
        source: Where the published figures stand.
        note: Why computed and published counts differ, where that is known.
    """

    num_params: int
    num_frozen: int = 0
    gmacs: float | None = None
    published_params: float | None = None
    published_gmacs: float | None = None
    top1: float | None = None
    source: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How somebody's code names the tensors of a checkpoint.

    Args:
        name: `timm`, `authors` or `transformers`.
        fingerprint: Names that every checkpoint in it has.
        absent: Names that none has.
        to_ours: Renames a whole state dict; raises UserError for a name without counterpart.
    """

    name: str
    fingerprint: tuple[str, ...]
    to_ours: "Callable[[Mapping[str, Tensor]], dict[str, Tensor]]"
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class System:
    """A paper's networks.

    Args:
        name: What people call it.
        paper: Authors, venue and arXiv number.
        rows: Its networks by name; those ending in `_32` are ours, for images of 32 pixels.
        facts: What is known of a row, by the same names.
        layouts: Whose checkpoints load.
        licence: Of the published weights; empty where there are none.
        mean: Subtracted from pixels scaled to 0..1, for the published weights.
        std: What they are then divided by.
        crop_pct: Share of the resized picture that the published evaluation keeps.
        is_in_timm: Whether timm has the same networks under the same names; timm keeps them.
    """

    name: str
    paper: str
    rows: Mapping[str, Spec]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()
    licence: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.9
    is_in_timm: bool = False
