"""The registry for tests: every name, and small networks of each kind of arithmetic.

What costs nothing (networks on torch's meta device) is asked of every row. What computes is asked
of `NAMES`: one row for each kind of arithmetic, with few blocks, and narrow where it is wide.
"""

from typing import Any

import torch
from torch import Tensor

import cvt
from cvt.parts.model import VisionModel
from cvt.systems.catalog import ROWS
from randomise import randomise

# Every row that is built here; the baselines are timm's and held to timm's contract there.
ROW_NAMES = tuple(name for name, row in ROWS.items() if not row.made_by_timm)
CVT_NAMES = tuple(cvt.list_models("cvt_*"))

# Whole rows for what even a network without weights takes long for: one of each form, not width.
FORMS = (
    *("cvt_13", "cvt_nano_32", "vit_tiny_patch16_224", "vit_small_patch32_224", "vit_nano_32"),
    *("deit_tiny_distilled_patch16_224", "deit_nano_32", "cpvt_tiny", "cpvt_tiny_gap"),
    *("twins_pcpvt_small", "tnt_s_patch16_224", "tnt_nano_32", "pvt_tiny", "pvt_nano_32"),
    *("t2t_vit_7", "t2t_vit_t_14", "t2t_nano_32"),
)

# Widths for the one row of CvT that is too heavy to run; its heads and strides stay.
NARROW = {"cvt_w24": {"embed_dim": (48, 96, 128)}}

# The last stage keeps two blocks, so that one of them has stochastic depth.
_PATCHES = {"embed_dim": 48, "num_heads": 3, "depth": 2}
SMALL: dict[str, dict[str, Any]] = {
    "cvt_13": {"depth": (1, 1, 2)},  # a class token, logits scaled by the whole width
    "cvt_nano_32": {"depth": (1, 1, 2)},  # the mean, logits scaled by a head's width
    "vit_small_patch16_224": _PATCHES,  # one stage, a table, a level behind each block
    "deit_nano_32": _PATCHES,  # two prefix tokens, two classifiers
    "cpvt_small": _PATCHES,  # a generator behind one block of two, a class token
    "cpvt_tiny_gap": _PATCHES,  # generators behind both, no prefix at all
    "twins_pcpvt_small": {"embed_dim": (16, 32, 40, 64), "depth": (1, 1, 1, 2)},
    "pvt_nano_32": {"embed_dim": (16, 32, 64), "depth": (1, 1, 2)},  # reduction, tables, a token
    "t2t_nano_32": {"embed_dim": (32, 32, 48), "depth": (0, 0, 2)},  # a performer's token layer
    "t2t_vit_t_14": {"embed_dim": (16, 16, 48), "depth": (0, 0, 2)},  # full attention in it
    "tnt_nano_32": {"embed_dim": 48, "num_heads": 3, "inner_dim": 12, "depth": 2},
}
NAMES = tuple(SMALL)
STAGED = tuple(name for name in NAMES if ROWS[name].staged)
DISTILLED = ("deit_nano_32",)


def changes_of(name: str) -> dict[str, Any]:
    """The changes that make a row small."""
    return SMALL.get(name) or {"depth": (1, 1, 2), **NARROW.get(name, {})}


def small(name: str, seed: int | None = 0, **changes) -> Any:
    """A registered network with few blocks a stage, randomised unless `seed` is None."""
    model = cvt.create_model(name, **{**changes_of(name), **changes})
    return model if seed is None else randomise(model, seed)


def meta(name: str, **changes) -> Any:
    """A registered network without memory for its weights: for counting and looking only."""
    with torch.device("meta"):
        return cvt.create_model(name, **changes)


def image(name: str, batch: int = 2, size: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    """Seeded images (batch, 3, H, W), of 64 pixels for the paper's rows and 16 for the others."""
    side = 16 if name.endswith("_32") else 64
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *(size or (side, side)), generator=generator)


def classifiers(model: VisionModel) -> tuple[Any, ...]:
    """The last linear layers: one, or a distilled network's two."""
    classifier = model.get_classifier()
    return classifier if isinstance(classifier, tuple) else (classifier,)
