"""LayerNorm and three depthwise convolutions in one kernel: against plain PyTorch, and in blocks.

Triton's interpreter runs the kernel on the CPU, slowly: shapes are small and so are the tiles, so
that every edge (strips, blocks of columns and channels, odd grids) occurs. With `-m gpu` the same
cases and larger ones run on a CUDA device.
"""

import importlib
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

import cvt
import networks
from cvt.inference import kernels as kernels_package
from cvt.inference.export import choose_sizes, trace
from cvt.inference.forms import AttentionForm, KernelAttentionForm, StageForm, inference_copy
from cvt.inference.kernels.norm_projections import (
    norm_projections,
    norm_projections_plain,
    stack_taps,
    token_moments,
)
from cvt.inference.passes import fold_batchnorm, use_norm_kernels
from cvt.parts.attention import Attention
from cvt.parts.block import Block
from cvt.parts.projection import ConvProjection, LinearProjection
from randomise import randomise
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


def test_plain_form_is_what_the_block_reads():
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


# --- The pass that puts the kernel into blocks.

SIZE = (16, 24)  # grids of 3 x 5 and 2 x 3


def tiny(depth: int = 1, **changes):
    """Two stages, the class token in the second, randomised."""
    last = {key: changes.pop(key) for key in ("cls_token", "q_stride") if key in changes}
    fields = cvt.StageSpec.__dataclass_fields__
    stage = {key: changes.pop(key) for key in tuple(changes) if key in fields}
    first = {"embed_dim": 8, "depth": 1, "num_heads": 1, "embed_kernel": 7, "embed_stride": 4}
    second = {"embed_dim": 18, "depth": depth, "num_heads": 2, "cls_token": True, **last}
    stages = tuple(cvt.StageSpec(**each, **stage) for each in (first, second))
    spec = cvt.BackboneSpec(stages=stages, num_classes=5, **changes)
    return randomise(cvt.Backbone(spec)).eval()


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def kinds(network: nn.Module) -> set[type]:
    return {type(each) for each in network.modules() if isinstance(each, AttentionForm)}


def assert_same(got, expected, limit=1e-5):
    """Equal to float32 rounding, relative to a scale of at least 1."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() / expected.abs().max().clamp(min=1) <= limit


@pytest.fixture
def calls(monkeypatch):
    """The interpreter, and the (grid, prefix, strides) of each call of the kernel."""
    module = load_kernels(monkeypatch, "1")
    seen, run = [], module.norm_projections_op

    def noted(*args):
        height, width, num_prefix, *strides = args[-6:]
        seen.append(((height, width), num_prefix, tuple(strides)))
        return run(*args)

    monkeypatch.setattr(module, "norm_projections_op", noted)
    return seen


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "batch", "expected"),
    [
        (
            {"depth": 2, "q_stride": 2},
            2,
            [((3, 5), 0, (1, 2, 2)), ((2, 3), 1, (2, 2, 2)), ((1, 2), 1, (1, 2, 2))],
        ),
        (
            {"distilled": True, "kv_stride": 1},
            1,
            [((3, 5), 0, (1, 1, 1)), ((2, 3), 2, (1, 1, 1))],
        ),
        (
            {"global_pool": "avg", "cls_token": False, "qkv_bias": False},
            1,
            [((3, 5), 0, (1, 2, 2)), ((2, 3), 0, (1, 2, 2))],
        ),
        (
            {"global_pool": "", "pos_embed": "conditional"},
            1,
            [((3, 5), 0, (1, 2, 2)), ((2, 3), 1, (1, 2, 2))],
        ),
    ],
)
def test_blocks_compute_the_same_through_the_kernel(calls, changes, batch, expected):
    model, given = tiny(**changes), images(batch)
    deployed = cvt.deploy(model)
    assert deployed.rewritten["kernels"] == len(expected)
    assert_same(deployed(given), model(given))
    assert calls == expected
    assert kinds(deployed) == {KernelAttentionForm}
    attentions = [each for each in deployed.modules() if isinstance(each, AttentionForm)]
    assert not any(isinstance(each, nn.Conv2d) for attn in attentions for each in attn.modules())
    assert use_norm_kernels(deployed.network) == 0


@torch.no_grad()
def test_tokens_travel_in_one_tensor(calls):
    model, fmap = tiny(), torch.randn(2, 8, 3, 5)
    other = cvt.deploy(model, without=["kernels"]).network.stages[1]
    stage = cvt.deploy(model).network.stages[1]
    assert (stage.splits, other.splits) == (False, True)
    for only_prefix in (True, False):
        stage.blocks[0].only_prefix = other.blocks[0].only_prefix = only_prefix
        # A block with the kernel may stand among others without, which want two.
        for stage.splits in (False, True):
            for got, expected in zip(joined(stage, fmap), joined(other, fmap), strict=True):
                assert_same(got, expected)
    assert len(calls) == 4


def joined(stage, fmap):
    """The tokens of each image."""
    parts, _ = stage(fmap)
    return torch.cat(parts, dim=1)


@torch.no_grad()
def test_blocks_of_a_stage_inside_another_module(calls):
    model, given = nn.Sequential(tiny()).eval(), images(1)
    deployed = cvt.deploy(model)
    assert not any(isinstance(each, StageForm) for each in deployed.modules())
    assert deployed.rewritten["kernels"] == 2
    assert_same(deployed(given), model(given))
    assert len(calls) == 2


@torch.no_grad()
def test_deployed_weights_may_move_to_where_no_kernel_is(calls):
    model, given = tiny(), images(1).double()
    # Linear maps packed for a CPU's float32 are for that alone.
    deployed = cvt.deploy(model, without=["pack"]).network.double()
    assert_same(deployed(given), model.double()(given), 1e-5)
    assert calls == []


def test_it_is_for_the_data_types_of_the_kernel(calls):
    network = inference_copy(tiny())
    fold_batchnorm(network)
    assert use_norm_kernels(network.double()) == 0
    assert use_norm_kernels(network.bfloat16()) == 2
    taps = [each.taps for each in network.modules() if isinstance(each, KernelAttentionForm)]
    assert {each.dtype for each in taps} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, ["kernels"]),
        ({}, ["batchnorm"]),
        ({"projection": "linear"}, []),
        ({"projection": "avg"}, []),
        ({"projection": "reduction"}, []),
        ({"kv_stride": 3}, []),
        ({"conv_kernel": 5}, []),
    ],
)
@torch.no_grad()
def test_other_blocks_stay_as_they_are(calls, changes, without):
    model = tiny(**changes)
    given = images(1)
    deployed = cvt.deploy(model, without=without)
    assert "kernels" not in deployed.rewritten
    assert kinds(deployed) == {AttentionForm}
    assert_same(deployed(given), model(given))
    assert calls == []


@torch.no_grad()
def test_a_block_that_convolves_only_some_stays_as_it_is(calls):
    model, given = tiny(), images(1)
    for stage in model.stages:
        attn = stage.blocks[0].attn
        plain = LinearProjection(attn.proj.in_features, bias=True)
        plain.linear, attn.v = attn.v.linear, plain
        attn.k.conv.stride = (1, 1)
    deployed = cvt.deploy(model)
    assert "kernels" not in deployed.rewritten
    assert_same(deployed(given), model(given))


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "pvt_nano_32", "tnt_nano_32"])
def test_other_systems_stay_as_they_are(calls, name):
    network = inference_copy(networks.small(name))
    assert use_norm_kernels(network) == 0


def test_a_cpu_gets_no_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    deployed = cvt.deploy(tiny())
    assert "kernels" not in deployed.rewritten
    assert kinds(deployed) == {AttentionForm}


def test_nothing_is_done_without_triton(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "kernels" not in cvt.deploy(tiny()).rewritten


def test_files_hold_no_kernels(calls):
    """They are to run without this library."""
    model = tiny()
    sizes = choose_sizes(model.spec, SIZE, 1, ())
    program = trace(model, sizes, torch.float32, torch.device("cpu"))
    assert not ours_in(program.graph)


def ours_in(graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("cvt.")]


@torch.no_grad()
def test_a_compiled_stage_calls_the_kernel(monkeypatch):
    load_kernels(monkeypatch, "1")
    deployed = cvt.deploy(tiny(), without=["pack"])  # which torch.compile does not look into
    stage, fmap = deployed.network.stages[1], torch.randn(2, 8, 3, 5)
    graphs = []

    def backend(graph, example):
        graphs.append(graph.graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    torch.compiler.reset()
    compiled = torch.compile(stage, fullgraph=True, backend=backend)
    assert_same(joined(compiled, fmap), joined(stage, fmap))
    torch.compiler.reset()
    (graph,) = graphs
    assert ours_in(graph) == ["cvt.norm_projections.default"]


@pytest.fixture
def pretended_network(monkeypatch):
    """A network with BatchNorm folded, on a CUDA device that need not exist."""
    load_kernels(monkeypatch, "0")
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    network = inference_copy(tiny())
    fold_batchnorm(network)
    with FakeTensorMode(), torch.no_grad():
        for module in network.modules():
            for name, each in module._parameters.items():
                if each is not None:
                    moved = torch.empty(each.shape, device="cuda", dtype=torch.float16)
                    module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        yield network


def test_a_gpu_gets_kernels(pretended_network):
    assert use_norm_kernels(pretended_network) == 2
    given = torch.empty(2, 3, *SIZE, device="cuda", dtype=torch.float16)
    logits = pretended_network(given)
    assert (tuple(logits.shape), logits.device.type) == ((2, 5), "cuda")
    program = torch.export.export(pretended_network, (given,), strict=False)
    assert ours_in(program.graph) == ["cvt.norm_projections.default"] * 2


@pytest.mark.parametrize("lacking", ["triton", "compiler", "capability"])
def test_a_gpu_that_cannot_compile_them_gets_none(pretended_network, monkeypatch, lacking):
    if lacking == "triton":
        monkeypatch.setitem(sys.modules, "triton", None)
    elif lacking == "compiler":
        monkeypatch.delenv("CC")
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert use_norm_kernels(pretended_network) == 0
    assert kinds(pretended_network) == {AttentionForm}


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["cvt_13", "cvt_nano_32"])
def test_networks_agree_on_a_gpu(monkeypatch, name, dtype, compiles):
    load_kernels(monkeypatch, "0")
    model, given = networks.small(name).eval(), networks.image(name, 3)
    expected = model(given)
    deployed = cvt.deploy(model, dtype=dtype, device="cuda")
    assert deployed.rewritten["kernels"] == 4
    run = torch.compile(deployed, fullgraph=True) if compiles else deployed
    limit = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert_same(run(given.cuda()).cpu(), expected, limit)
