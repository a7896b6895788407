"""Images and folders of images made on the spot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def class_folder(tmp_path):
    """Returns a function that writes `{"cat": 3, "dog": 2}` small images under a folder."""

    def write(counts: dict[str, int], under: str = "") -> Path:
        folder = tmp_path / under
        for number, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                colour = (number * 60, index * 20 % 256, 100)
                Image.new("RGB", (10, 8), colour).save(folder / name / f"{index:03}.png")
        return folder

    return write


@pytest.fixture
def noise():
    """Returns a function that makes a uint8 image of noise with the given height and width."""
    random = np.random.default_rng(0)
    return lambda *shape: random.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def shared_data():
    """The real images beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images are not there")
    return folder
