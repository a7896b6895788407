"""Formats of `cvt.export` that write a word instead of a network, to test what is around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvt.inference.export import FORMATS, ExportFormat, Metadata


class StubbedFormat(ExportFormat):
    """Takes the place of a format: says what it is like, and runs the model itself.

    Args:
        real: The format.
        model: What the file is to compute.
    """

    def __init__(self, real: ExportFormat, model: nn.Module) -> None:
        for name in ExportFormat.__annotations__:
            setattr(self, name, getattr(real, name))
        self.model = model
        self.change: Callable[[Tensor], Tensor] = lambda output: output
        self.written: list[tuple[str, Tensor | None]] = []

    def trace(self, model: nn.Module, about: Metadata, device: torch.device) -> Any:
        return None

    def write(self, program: Any, path: Path, about: Metadata, calibration: Tensor | None) -> None:
        self.written.append((about.dtype, calibration))
        path.write_text("a network")
        if self.companion:
            path.with_suffix(self.companion).write_text("weights")

    def load(self, path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
        assert path.read_text() == "a network"
        assert path.suffix == self.suffixes[0]

        @torch.no_grad()
        def run(images: Tensor) -> Tensor:
            return self.change(self.model(images))

        return run


def stub_format(monkeypatch: pytest.MonkeyPatch, name: str, model: nn.Module) -> StubbedFormat:
    """Puts a stub in the place of a format until the end of the test."""
    made = StubbedFormat(FORMATS[name], model)
    monkeypatch.setitem(FORMATS, name, made)
    return made
