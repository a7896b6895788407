"""What the numbers in systems/golden/ of T2T-ViT and PVT were made from: weights out of a name.

Every tensor is filled from its name in the authors' code alone, so that only names, shapes and the
outputs have to be stored. Made once, with the authors' code at the commit named in each file.
"""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

_FOLDER = Path(__file__).parent / "systems" / "golden"


def read_golden(name: str) -> dict[str, Any]:
    return json.loads((_FOLDER / name).read_text())


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Returns the state dict in the authors' names."""
    return {name: _single(_values(name, tuple(shape))) for name, shape in shapes.items()}


def image(size: str) -> Tensor:
    """Returns the two images of a size such as `64x96`."""
    height, width = map(int, size.split("x"))
    random = np.random.RandomState(crc32(f"image {size}".encode()))
    return _single(random.standard_normal((2, 3, height, width)))


def check_logits(model: torch.nn.Module, size: str, expected: dict[str, Any]) -> None:
    """Compares a model's logits, computed in its own precision, with the golden ones.

    Tolerances are relative to a scale of at least 1; the float64 numbers have thirteen digits.
    """
    dtype = next(model.parameters()).dtype
    name, rtol = ("float64", 1e-10) if dtype == torch.float64 else ("float32", 1e-5)
    with torch.inference_mode():
        logits = model(image(size).to(dtype))
    wanted = torch.tensor(expected[name]["logits"], dtype=dtype)
    atol = rtol * max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(logits[:, : wanted.shape[1]], wanted, rtol=0, atol=atol)
    norms = torch.tensor(expected["float64"]["logits_norm"], dtype=torch.float64)
    torch.testing.assert_close(logits.double().norm(dim=1), norms, rtol=rtol, atol=0)


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(crc32(name.encode()))
    if name.endswith((".attention1.w", ".attention2.w")) or "pos_embed" in name:
        return random.standard_normal(shape)
    if name == "cls_token":
        return random.standard_normal(shape)
    if len(shape) > 1:
        # A performer's features underflow with keys and queries that are much longer than 1.
        gain = 0.25 if name.endswith("kqv.weight") else 1.5
        return random.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
    if name.endswith("weight"):
        return random.uniform(0.5, 1.5, shape)
    return random.standard_normal(shape) * 0.3


def _single(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values)).float()
