"""The registry for tests: every name, and a network of each that is quick to run on two cores."""

import torch
from torch import Tensor

import cvt
from cvt.parts.backbone import Backbone
from cvt.systems.cvt import ROWS
from randomise import randomise

NAMES = tuple(cvt.list_models())

# Widths for the one row that is too heavy to run; its heads and strides stay.
NARROW = {"cvt_w24": {"embed_dim": (48, 96, 128)}}


def small(name: str, seed: int | None = 0, **changes) -> Backbone:
    """A registered network with few blocks a stage, randomised unless `seed` is None.

    The last stage keeps two blocks, so that one of them has stochastic depth.
    """
    depth = (1, 1, 2)
    model = cvt.create_model(name, **{"depth": depth, **NARROW.get(name, {}), **changes})
    return model if seed is None else randomise(model, seed)


def meta(name: str, **changes) -> Backbone:
    """A registered network without memory for its weights: for counting and looking only."""
    with torch.device("meta"):
        return cvt.create_model(name, **changes)


def image(name: str, batch: int = 2, size: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    """Seeded images (batch, 3, H, W), of 64 pixels for the paper's rows and 16 for the others."""
    side = 16 if ROWS[name].stages[0].embed_stride < 4 else 64
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *(size or (side, side)), generator=generator)
