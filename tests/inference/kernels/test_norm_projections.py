"""LayerNorm and the three depthwise convolutions in one kernel, against plain PyTorch.

Triton's interpreter runs the kernel on the CPU, slowly: shapes are small and so are the tiles, so
that every edge (strips, blocks of columns and channels, odd grids) occurs. With `-m gpu` the same
cases and larger ones run on a CUDA device.
"""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from cvt.inference import kernels as kernels_package
from cvt.inference.kernels.norm_projections import (
    norm_projections,
    norm_projections_plain,
    stack_taps,
    token_moments,
)
from cvt.parts.attention import Attention
from cvt.parts.block import Block
from cvt.parts.projection import ConvProjection
from triton_kernels import NAME, load_interpreted, load_kernels, require_triton

# batch, grid, prefix, channels, strides
CASES = [
    (1, (5, 5), 1, 20, (1, 2, 2)),
    (2, (2, 3), 0, 16, (1, 2, 2)),
    (1, (3, 2), 2, 24, (2, 1, 2)),
    (1, (1, 1), 1, 3, (1, 2, 2)),
]
LARGER = [
    (3, (56, 56), 0, 64, (1, 2, 2)),
    (3, (28, 28), 0, 192, (1, 2, 2)),
    (3, (14, 14), 1, 384, (1, 2, 2)),
    (2, (15, 21), 1, 1024, (1, 2, 2)),
    (2, (37, 5), 2, 100, (2, 1, 2)),
]


@pytest.fixture
def kernels(monkeypatch):
    return load_interpreted(monkeypatch)


def arguments(batch, grid, num_prefix, dim, strides, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    tokens = draw(batch, num_prefix + grid[0] * grid[1], dim) * 2 + 1
    weights = {
        "norm_weight": 1 + draw(dim) / 3,
        "norm_bias": draw(dim),
        "taps": draw(3, 3, 3, dim) / 3,
        "bias": draw(3, dim),
    }
    weights = {name: value.to(device) for name, value in weights.items()}
    tokens = tokens.to(device, dtype)
    return (tokens, grid, num_prefix), {**weights, "eps": 1e-5, "strides": strides}


def in_double(places, names):
    tokens, *rest = places
    names = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in names.items()}
    return norm_projections_plain(tokens.double(), *rest, **names)


def assert_kernel_agrees(case, dtype, device):
    places, names = arguments(*case, dtype, device)
    read, expected = norm_projections(*places, **names), in_double(places, names)
    # Sums of 9 products of order 1 in float32, then one rounding (by chopping in the interpreter).
    step = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    for ours, theirs in zip(read, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=step)


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_plain_pytorch(kernels, case):
    assert_kernel_agrees(case, torch.float32, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_computes_in_float32_whatever_the_storage(kernels, dtype):
    assert_kernel_agrees((1, (3, 4), 1, 16, (1, 2, 2)), dtype, "cpu")


def test_default_tiles_agree(monkeypatch):
    load_kernels(monkeypatch, "1")
    assert_kernel_agrees((1, (3, 3), 1, 70, (1, 2, 2)), torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [*CASES, *LARGER])
def test_kernel_agrees_on_a_gpu(monkeypatch, case, dtype):
    load_kernels(monkeypatch, "0")
    assert_kernel_agrees(case, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGER[:3])
def test_compiled_caller_agrees_on_a_gpu(monkeypatch, case):
    load_kernels(monkeypatch, "0")
    places, names = arguments(*case, torch.bfloat16, "cuda")
    compiled = torch.compile(norm_projections, fullgraph=True)
    for ours, theirs in zip(compiled(*places, **names), in_double(places, names), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=2.0**-7)


def test_tokens_that_do_not_lie_side_by_side(kernels):
    (tokens, *rest), names = arguments(1, (2, 2), 1, 16, (1, 2, 2))
    apart = torch.cat((tokens, tokens), dim=2)[:, :, :16]
    for ours, theirs in zip(
        norm_projections(apart, *rest, **names),
        norm_projections(tokens, *rest, **names),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_moments_kernel_agrees(kernels):
    tokens = torch.randn(3, 5, 37) * 3 + 20
    for ours, theirs in zip(
        kernels.token_moments_op(tokens, 1e-5), token_moments(tokens, 1e-5), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_plain_form_is_what_the_block_reads(randomise):
    """LayerNorm, convolution and BatchNorm of a training block, up to the linear maps."""
    reads = [ConvProjection(6, kernel=3, stride=stride, bias=True) for stride in (1, 2, 2)]
    q, k, v = reads
    attn = Attention(6, 2, q=q, k=k, v=v, scale=1.0)
    block = randomise(Block(6, attn=attn, mlp=nn.Identity(), norm_eps=1e-5)).double().eval()
    for read in reads:
        read.linear = nn.Identity()
    tokens = torch.randn(2, 1 + 5 * 4, 6, dtype=torch.float64)
    normalised = block.norm1(tokens)
    folded = [nn.utils.fuse_conv_bn_weights(*_conv(read)) for read in reads]
    taps, bias = stack_taps(*zip(*folded, strict=True))
    names = {"norm_weight": block.norm1.weight, "norm_bias": block.norm1.bias, "eps": 1e-5}
    ours = norm_projections(tokens, (5, 4), 1, taps=taps, bias=bias, **names)
    for read, got in zip(reads, ours, strict=True):
        expected = read(normalised, (5, 4), 1)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def _conv(read):
    bn = read.bn
    assert bn.running_mean.abs().min() > 0
    conv = (read.conv.weight, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    return conv


def test_plain_form_serves_float64_and_gradients_in_the_interpreter_too(monkeypatch):
    require_triton()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, NAME, None)
    (tokens, *rest), names = arguments(1, (3, 3), 1, 4, (1, 2, 2))
    norm_projections(tokens.double(), *rest, **names)
    q, *_ = norm_projections(tokens.requires_grad_(), *rest, **names)
    F.mse_loss(q, q.detach() + 1).backward()
    assert tokens.grad.abs().sum() > 0
    with pytest.raises(ImportError), torch.no_grad():
        norm_projections(tokens, *rest, **names)


def test_cpu_needs_no_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    name = norm_projections.__module__
    monkeypatch.setattr(kernels_package, "norm_projections", sys.modules[name])
    monkeypatch.delitem(sys.modules, name)
    places, names = arguments(1, (3, 3), 1, 4, (1, 2, 2))
    fresh = importlib.import_module(name)
    q, k, v = fresh.norm_projections(*places, **names)
    assert (q.shape[1], k.shape[1], v.shape[1]) == (10, 5, 5)


class Reader(nn.Module):
    """What an exported network does with the kernel."""

    def __init__(self, *places, **names):
        super().__init__()
        self.places, self.names = places, names

    def forward(self, tokens):
        return norm_projections(tokens, *self.places, **self.names)


@pytest.fixture
def pretended(monkeypatch):
    """A network and tokens on a CUDA device that need not exist."""
    load_kernels(monkeypatch, "0")
    with FakeTensorMode(), torch.no_grad():
        case = (2, (5, 7), 1, 20, (1, 2, 2))
        (tokens, *places), names = arguments(*case, torch.bfloat16, "cuda")
        yield Reader(*places, **names), tokens


def test_fake_tensors_take_the_shapes_and_the_device(pretended):
    reader, tokens = pretended
    read = reader(tokens)
    assert [tuple(r.shape) for r in read] == [(2, 36, 20), (2, 13, 20), (2, 13, 20)]
    assert {(r.device.type, r.dtype) for r in read} == {("cuda", torch.bfloat16)}


def test_export_keeps_the_operator_and_plain_moments(pretended):
    reader, tokens = pretended
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(reader, (tokens,), dynamic_shapes=free)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.cvt.norm_projections.default in targets
    assert torch.ops.aten.var_mean.correction in targets
    assert torch.ops.cvt.token_moments.default not in targets
