"""A folder of tiny images, and a run on it that takes about a second."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY_MODEL = {
    "embed_dim": [8, 8, 16],
    "depth": [1, 1, 2],
    "num_heads": [1, 1, 2],
    "embed_stride": [2, 2, 1],
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Twelve train, four val and four test images of 12x12 pixels: dark ones and bright ones."""
    root = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for name, low in (("bright", 128), ("dark", 0)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


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
