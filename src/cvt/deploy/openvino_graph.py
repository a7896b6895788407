"""A rewritten network as a graph of OpenVINO's, for the sizes that its tracing left free."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from cvt.deploy.export_graph import image_shape
from cvt.deploy.openvino_core import core
from cvt.deploy.openvino_resize import conversions

Bounds = tuple[int, int | None]
"""The smallest and the largest size of an axis; None: there is no largest."""


@dataclass(frozen=True)
class Graph:
    """A graph, and which images (B, C, H, W) it was traced for.

    Args:
        model: An `openvino.Model`, whose input has free sizes where the bounds leave them.
        bounds: One pair for each axis of the images.
    """

    model: Any
    bounds: tuple[Bounds, ...]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether images of this shape may go in."""
        return all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip(shape, self.bounds, strict=True)
        )

    def covers(self, other: "Graph") -> bool:
        """Whether all images that go into another may go into this one."""
        return all(
            low <= other_low and (high is None or (other_high is not None and other_high <= high))
            for (low, high), (other_low, other_high) in zip(self.bounds, other.bounds, strict=True)
        )

    def of_shape(self, shape: tuple[int, ...]) -> Any:
        """Returns an `openvino.Model` for images of this shape alone; the weights are shared."""
        model = self.model.clone()
        model.reshape(list(shape))
        return model

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graph":
        return self

    def __getstate__(self) -> dict[str, Any]:
        import openvino

        with TemporaryDirectory() as folder:
            text, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
            openvino.serialize(self.model, text, weights)
            return {"files": (text.read_bytes(), weights.read_bytes()), "bounds": self.bounds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "model", core().read_model(*state["files"]))
        object.__setattr__(self, "bounds", state["bounds"])


def to_graph(network: nn.Module, images: Tensor, *, any_size: bool) -> Graph:
    """Traces a network by `torch.export` and converts it.

    Batch, height and width stay free where the network lets them: position tables, windows and the
    like tie it to the size of the images, and then so is the graph.

    Args:
        network: The rewritten network, in float32 on the CPU.
        images: An example (B, C, H, W), two of them at least: one is traced as a constant.
        any_size: Whether height and width are to be free as well as the batch, which takes twice
            as long (CvT-13, one Zen 3 core: 20 s and not 11).
    """
    free = (0, 2, 3) if any_size else (0,)
    shapes = {axis: torch.export.Dim.AUTO for axis in free}
    program = torch.export.export(network, (images,), dynamic_shapes=(shapes,), strict=False)
    return Graph(converted(program), _bounds(program))


def converted(program: torch.export.ExportedProgram) -> Any:
    """Returns an `openvino.Model` of a program, with sizes free where the program leaves them."""
    import openvino

    model = openvino.convert_model(program, extension=conversions())
    # The converter forgets which sizes were traced as constants.
    model.reshape([size if isinstance(size, int) else -1 for size in image_shape(program)])
    return model


def _bounds(program: torch.export.ExportedProgram) -> tuple[Bounds, ...]:
    """What the tracing found out about the images' sizes; a batch may always be of one."""
    batch, *others = (_axis(program, size) for size in image_shape(program))
    return (batch if batch[0] == batch[1] else (1, batch[1])), *others


def _axis(program: torch.export.ExportedProgram, size: int | torch.SymInt) -> Bounds:
    if isinstance(size, int):
        return size, size
    limits = program.range_constraints[size.node.expr]
    largest = limits.upper
    return int(limits.lower), int(largest) if largest.is_Integer else None
