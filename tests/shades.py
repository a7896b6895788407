"""Two classes of tiny images that any network tells apart: bright ones and dark ones."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_shades(root: Path, counts: Mapping[str, tuple[int, int]] | None = None) -> Path:
    """Writes class folders of noise, 12x12 pixels, and returns where they are.

    Args:
        counts: How many bright and dark ones each split gets; by default ten each and no splits.
    """
    random = np.random.default_rng(0)
    for split, (bright, dark) in (counts or {"": (10, 10)}).items():
        for name, low, count in (("bright", 128, bright), ("dark", 0, dark)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root
