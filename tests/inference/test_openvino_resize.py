"""Position tables in OpenVINO: interpolated to any grid as torch does it."""

import openvino
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from cvt.inference.openvino import conversions, core


class Table(torch.nn.Module):
    """A map of 8x6, on the grid of whatever comes in."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.randn(1, 4, 8, 6, generator=generator))

    def forward(self, fmap):
        return fmap + F.interpolate(self.table, fmap.shape[2:], mode="bicubic", antialias=True)


@pytest.fixture(scope="module")
def compiled():
    free = {2: Dim("height", min=2), 3: Dim("width", min=2)}
    example = torch.zeros(1, 4, 8, 9)
    program = torch.export.export(Table(), (example,), dynamic_shapes=(free,), strict=False)
    graph = openvino.convert_model(program, extension=conversions())
    return core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("grid", [(8, 6), (3, 2), (5, 11), (16, 12), (23, 40)])
def test_any_grid(compiled, grid):
    fmap = torch.zeros(1, 4, *grid)
    got = torch.from_numpy(compiled(fmap.numpy())[0])
    torch.testing.assert_close(got, Table()(fmap), atol=1e-5, rtol=0)
