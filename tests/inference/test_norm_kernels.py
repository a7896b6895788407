"""The pass that puts the kernel into blocks, in Triton's interpreter; with `-m gpu` on a GPU."""

import shutil
import sys

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import cvt
import networks
from cvt.inference.export.trace import choose_sizes, trace
from cvt.inference.forms import AttentionForm, KernelAttentionForm, StageForm, inference_copy
from cvt.inference.passes import fold_batchnorm, use_norm_kernels
from cvt.parts.projection import LinearProjection
from randomise import randomise
from triton_kernels import load_kernels

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
def pretended(monkeypatch):
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


def test_a_gpu_gets_kernels(pretended):
    assert use_norm_kernels(pretended) == 2
    given = torch.empty(2, 3, *SIZE, device="cuda", dtype=torch.float16)
    logits = pretended(given)
    assert (tuple(logits.shape), logits.device.type) == ((2, 5), "cuda")
    program = torch.export.export(pretended, (given,), strict=False)
    assert ours_in(program.graph) == ["cvt.norm_projections.default"] * 2


@pytest.mark.parametrize("lacking", ["triton", "compiler", "capability"])
def test_a_gpu_that_cannot_compile_them_gets_none(pretended, monkeypatch, lacking):
    if lacking == "triton":
        monkeypatch.setitem(sys.modules, "triton", None)
    elif lacking == "compiler":
        monkeypatch.delenv("CC")
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert use_norm_kernels(pretended) == 0
    assert kinds(pretended) == {AttentionForm}


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
