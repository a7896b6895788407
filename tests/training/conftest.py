"""A folder of tiny images, and a run on it that takes about a second."""

from functools import partial
from typing import Any

import pytest

from shades import write_shades
from trained import TINY_MODEL


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Twelve train, four val and four test images of 12x12 pixels: dark ones and bright ones."""
    counts = {"train": (6, 6), "val": (2, 2), "test": (2, 2)}
    return write_shades(tmp_path_factory.mktemp("tiny"), counts)


@pytest.fixture(scope="session")
def tiny_run(tiny_folder):
    """`tiny_run(out, **changes)`: the settings of a run of two epochs of three updates."""

    def make(out, **changes) -> dict[str, Any]:
        values = {
            "data": str(tiny_folder),
            "model": "cvt_nano_32",
            "model_args": TINY_MODEL,
            "drop_path_rate": 0.5,
            "out": str(out),
            "epochs": 2,
            "batch_size": 4,
            "image_size": 16,
            "num_workers": 0,
            "device": "cpu",
            "optim": {"lr": 1e-3, "warmup_epochs": 0.5},
            "augment": {
                "crop": "random_resized",
                "scale": (0.5, 1.0),
                "auto_augment": "rand-m3-mstd0.5",
                "re_prob": 0.5,
            },
            "mix": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1},
        }
        return {**{**values, **changes}}

    return make


@pytest.fixture
def tiny_config(tiny_run, tmp_path):
    """`tiny_config(**changes)`: a `tiny_run` into `tmp_path / "run"`."""
    return partial(tiny_run, tmp_path / "run")
