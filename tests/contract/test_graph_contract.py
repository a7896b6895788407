"""The networks as graphs: torch.compile, torch.export, torch.fx, timm's attention extraction."""

import copy

import pytest
import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import get_notrace_functions, get_notrace_modules
from timm.utils import AttentionExtract
from torch import nn
from torch.export import Dim, export
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import cvt
from cvt import Backbone
from cvt.systems.cvt import ROWS
from networks import NAMES, image, small
from randomise import randomise

UNSTRIDED = {
    "projection": ("linear", "conv", "conv"),
    "pos_embed": ("table", "none", "none"),
    "img_size": 64,
    "cls_token": False,
}
CHOICES = {"cvt_13": {}, "unstrided": UNSTRIDED, "mixed": {**UNSTRIDED, "q_stride": (1, 1, 2)}}

# torchvision looks at both modes and says that stochastic depth is in one of them only.
two_graphs = pytest.mark.filterwarnings(
    "ignore:(NOTE. )?The nodes obtained by tracing the model in:UserWarning"
)


@pytest.fixture(autouse=True)
def _no_compiled_code_left():
    """torch counts recompilations of a function over all its networks, and gives up at eight."""
    yield
    torch.compiler.reset()


@pytest.fixture
def written_out_attention():
    """timm's switch, put back afterwards."""
    before = use_fused_attn()
    set_fused_attn(False)
    yield
    set_fused_attn(before > 0, experimental=before == 2)


@pytest.mark.parametrize("name", NAMES)
def test_compile_has_no_graph_break(name):
    model = small(name).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(image(name)), model(image(name)))


def test_compiled_training_step_with_recomputed_blocks():
    """One stage of one block, since most of the time goes into tracing."""
    row = ROWS["cvt_nano_32"]
    model = randomise(Backbone(row.change(stages=row.stages[:1], embed_dim=8, depth=1))).train()
    model.set_grad_checkpointing()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for run in (model, compiled):
        run(image("cvt_nano_32")).square().mean().backward()
    # Sums over 2x16x16 positions in another order: some 512**0.5 float32 roundings of 6e-8.
    for (key, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        atol = 1e-5 * max(one.grad.abs().max().item(), 1e-2)
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=atol, msg=key)
    for (key, one), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5, msg=key)


def test_compile_with_dynamic_sizes():
    """The first stage, and the last one with its class token."""
    row = ROWS["cvt_13"]
    model = randomise(Backbone(row.change(stages=row.stages[::2], depth=1))).double().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for batch, size in [(2, (64, 96)), (3, (80, 48)), (2, (51, 77))]:
            images = image("cvt_13", batch, size).double()
            torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=1e-9)


# Seen in torch 2.11: max pooling ties an exported size to the parity of the example's. Not in 2.15.
POOLS_EXPORT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)


@pytest.mark.parametrize(
    "choices",
    [
        "cvt_13",
        "unstrided",
        pytest.param(
            "mixed",
            marks=pytest.mark.skipif(not POOLS_EXPORT, reason="needs torch 2.15's max pooling"),
        ),
    ],
)
def test_export_with_dynamic_batch_height_and_width(choices):
    """Sides of 96 and more: torch.export takes a grid of 1, at the end, for a constant."""
    model = small("cvt_13", depth=1, num_classes=5, **CHOICES[choices]).double().eval()
    free = {0: Dim("batch", max=64), 2: Dim("height", min=96), 3: Dim("width", min=96)}
    program = export(model, (image("cvt_13", 2, (96, 128)).double(),), dynamic_shapes=(free,))
    exported = program.module()
    with torch.no_grad():
        for batch, size in [(1, (96, 96)), (3, (128, 97)), (2, (107, 151))]:
            images = image("cvt_13", batch, size).double()
            torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [each for each in NAMES if not each.startswith("cvt_")])
def test_export_with_dynamic_batch(name):
    model = small(name).double().eval()
    images = image(name, 2).double()
    exported = export(model, (images,), dynamic_shapes=({0: Dim("batch")},)).module()
    with torch.no_grad():
        for batch in (1, 3):
            images = image(name, batch, seed=1).double()
            torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-9)


def test_export_of_a_small_row():
    model = small("cvt_nano_32").double().eval()
    free = {0: Dim("batch"), 2: Dim.AUTO, 3: Dim.AUTO}
    images = image("cvt_nano_32", 2, (32, 48)).double()
    exported = export(model, (images,), dynamic_shapes=(free,)).module()
    images = image("cvt_nano_32", 1, (39, 34)).double()
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-9)


def fx_twin(model):
    """The last node of the traced graph as a network, traced as timm's own tests trace."""
    options = {
        "leaf_modules": list(get_notrace_modules()),
        "autowrap_functions": list(get_notrace_functions()),
        "param_shapes_constant": True,
    }
    train, evaluate = get_graph_node_names(model, tracer_kwargs=options)
    return create_feature_extractor(
        model,
        train_return_nodes=[train[-1]],
        eval_return_nodes=[evaluate[-1]],
        tracer_kwargs=options,
    )


@two_graphs
@pytest.mark.parametrize("name", NAMES)
def test_fx_forward(name):
    model = small(name).eval()
    with torch.inference_mode():
        expected = model(image(name))
        (logits,) = fx_twin(model)(image(name)).values()
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", NAMES)
def test_fx_backward(name):
    model = small(name, num_classes=42, drop_path_rate=0).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # T2T's performer has its own, which is no field of the row
    twin = fx_twin(copy.deepcopy(model))
    expected = model(image(name))
    (logits,) = twin(image(name)).values()
    assert torch.equal(logits, expected)
    expected.mean().backward()
    logits.mean().backward()
    gradients = {key: parameter.grad for key, parameter in twin.named_parameters()}
    for key, parameter in model.named_parameters():
        assert torch.equal(gradients[key], parameter.grad), key


@two_graphs
def test_fx_of_other_choices():
    model = small("cvt_13", **CHOICES["mixed"]).eval()
    twin = fx_twin(model)
    with torch.no_grad():
        for size in [(64, 64), (48, 80)]:
            images = image("cvt_13", 1, size)
            assert torch.equal(next(iter(twin(images).values())), model(images))


@two_graphs
@pytest.mark.usefixtures("written_out_attention")
@pytest.mark.parametrize("method", ["fx", "hook"])
@pytest.mark.parametrize("name", ["cvt_13", "cvt_nano_32", "pvt_nano_32"])
def test_timms_attention_extract_gives_our_maps(name, method):
    model = small(name).eval()
    images = image(name, 2)
    expected = cvt.attention_maps(model, images)
    with torch.no_grad():
        extracted = AttentionExtract(model, method=method)(images)
    assert len(extracted) == len(expected) == 4
    for ours, (key, theirs) in zip(expected, extracted.items(), strict=True):
        assert key.startswith(ours.name)
        assert torch.equal(theirs, ours.weights)


def test_fused_attention_follows_timms_switch(written_out_attention):
    assert not small("cvt_13").stages[0].blocks[0].attn.fused_attn
    set_fused_attn(True)
    assert small("cvt_13").stages[0].blocks[0].attn.fused_attn


@two_graphs
def test_torchvision_extracts_a_stage_by_name():
    model = timm.create_model("cvt_13", depth=1).eval()
    extract = create_feature_extractor(model, {"stages.1.embed.proj": "map"})
    assert extract(image("cvt_13", 1))["map"].shape == (1, 192, 8, 8)
