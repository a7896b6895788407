"""The front door: the same call and outputs, for every kind of network, and what it refuses."""

import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cvt
import networks
from cvt.errors import UserError
from cvt.inference import PASSES
from cvt.inference.forms import inference_copy
from processors import pretend_cpu
from randomise import randomise


def assert_same(got, expected):
    """Equal to float rounding, relative to a scale of at least 1."""
    tolerance = 1e-10 if expected.dtype == torch.float64 else 1e-5
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    worst = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert worst <= tolerance


@torch.no_grad()
def check(model, images):
    """A model in eval mode and its deployed form agree."""
    expected = model.eval()(images)
    assert_same(cvt.deploy(model)(images), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", networks.NAMES)
def test_outputs_are_equal_to_float_rounding(name, dtype):
    model = networks.small(name).to(dtype)
    check(model, networks.image(name, 3).to(dtype))
    check(model, networks.image(name, 1).to(dtype))


CHOICES = {
    "projection": st.sampled_from(["conv", "avg", "linear", "reduction"]),
    "kv_stride": st.sampled_from([1, 2, 3]),
    "global_pool": st.sampled_from(["token", "avg", ""]),
    "num_classes": st.sampled_from([0, 3]),
    "cls_token": st.booleans(),
    "distilled": st.booleans(),
    "act_layer": st.sampled_from(["quick_gelu", "gelu", "silu", "relu"]),
    "pos_embed": st.sampled_from(["none", "table", "sinusoid", "conditional"]),
    "peg_depth": st.sampled_from([1, 2]),
    "attn_scale": st.sampled_from(["dim", "head_dim"]),
    "qkv_bias": st.booleans(),
    "embed_norm": st.booleans(),
    "q_stride": st.sampled_from([1, 2]),
    "drop_path_rate": st.sampled_from([0.0, 0.5]),
}


@settings(max_examples=40)
@given(
    changes=st.fixed_dictionaries(CHOICES),
    without=st.sets(st.sampled_from(PASSES)),
    size=st.tuples(st.integers(17, 40), st.integers(17, 40)),
    batch=st.integers(1, 3),
)
def test_any_choice_any_size_any_passes(changes, without, size, batch):
    changes = dict(changes)
    if changes["projection"] != "conv":
        changes["q_stride"] = 1
    is_token = changes["global_pool"] == "token"
    changes["cls_token"] = changes["cls_token"] or is_token or changes["distilled"]
    if changes["distilled"]:
        changes["global_pool"] = "token" if changes["num_classes"] else ""
    last = ("cls_token", "q_stride")
    stage = {key: changes[key] for key in changes if key in cvt.StageSpec.__dataclass_fields__}
    spec = cvt.BackboneSpec(
        stages=(
            cvt.StageSpec(
                embed_dim=8,
                depth=1,
                num_heads=1,
                **{key: value for key, value in stage.items() if key not in last},
            ),
            cvt.StageSpec(embed_dim=12, depth=2, num_heads=2, **stage),
        ),
        img_size=32,
        **{key: value for key, value in changes.items() if key not in stage},
    )
    model = randomise(cvt.Backbone(spec)).double()
    images = torch.randn(batch, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(images)
    assert_same(cvt.deploy(model, without=sorted(without))(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_baselines_lose_their_batchnorms(name):
    model = randomise(cvt.create_model(name, num_classes=5)).double().eval()
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    deployed = cvt.deploy(model)
    assert_same(deployed(images), model(images))
    assert not any(isinstance(each, nn.BatchNorm2d) for each in deployed.modules())


def test_a_pyramid_is_deployed_inside_its_wrapper():
    model = randomise(timm.create_model("cvt_nano_32", features_only=True, depth=1)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    for got, level in zip(cvt.deploy(model)(images), expected, strict=True):
        assert_same(got, level)


def test_pruned_networks_give_their_features():
    model = networks.small("cvt_nano_32").double()
    model.prune_intermediate_layers([1])
    check(model, networks.image("cvt_nano_32").double())


def test_the_given_model_is_not_touched():
    model = networks.small("cvt_nano_32", drop_path_rate=0.5, proj_drop_rate=0.5)
    model.set_grad_checkpointing()
    calls = []
    model.stages[0].blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model.head.register_forward_pre_hook(lambda *_: calls.append(2))
    before = copy.deepcopy(model.state_dict())
    deployed = cvt.deploy(model)
    images = networks.image("cvt_nano_32")
    deployed(images)
    assert not calls
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(each.requires_grad for each in model.parameters())
    assert all(
        each.is_contiguous() and torch.equal(each, before[name])
        for name, each in model.state_dict().items()
    )
    ours = {each.data_ptr() for each in deployed.parameters()}
    assert not ours & {each.data_ptr() for each in model.parameters()}
    with torch.no_grad():
        assert_same(deployed(images), model.eval()(images))
    assert calls == [1, 2]


def test_it_stays_in_eval_mode_without_gradients():
    deployed = cvt.deploy(networks.small("cvt_nano_32", proj_drop_rate=0.5))
    images = networks.image("cvt_nano_32").requires_grad_()
    first = deployed(images)
    assert not any(module.training for module in deployed.train().modules())
    assert torch.equal(deployed(images), first)
    assert not first.requires_grad
    # The features of a frozen network train what stands on it.
    nn.Linear(10, 2)(first).sum().backward()


def test_it_keeps_what_the_model_says_about_itself():
    model = timm.create_model("cvt_nano_32", num_classes=7)
    deployed = cvt.deploy(model)
    assert deployed.spec == model.spec
    assert (deployed.num_classes, deployed.in_chans) == (7, 3)
    assert deployed.pretrained_cfg == model.pretrained_cfg
    assert "batchnorm 12" in repr(deployed)
    assert "quick_gelu" not in repr(cvt.deploy(model, without=["quick_gelu"]))


def test_it_is_copied_and_pickled():
    deployed = cvt.deploy(networks.small("cvt_nano_32"))
    images = networks.image("cvt_nano_32")
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other(images), deployed(images))


def test_images_of_another_type_are_converted_and_so_is_the_answer():
    model = networks.small("cvt_nano_32")
    images = networks.image("cvt_nano_32")
    with torch.no_grad():
        expected = model.eval()(images)
    for name in ("float64", "double", torch.float64):
        assert_same(cvt.deploy(model, dtype=name)(images), expected)
    with pytest.raises(UserError, match="normalise"):
        cvt.deploy(model)(images.byte())


def test_half_precision_is_rounded_once(monkeypatch):
    """The passes work in float32: a folded weight is as near as bfloat16 can be."""
    pretend_cpu(monkeypatch, "avx512_bf16")
    model = networks.small("cvt_nano_32")
    exact = cvt.deploy(model, without=["pack"])
    rounded = cvt.deploy(model, dtype="bf16", without=["pack"])
    for (name, one), (_, other) in zip(
        exact.named_parameters(), rounded.named_parameters(), strict=True
    ):
        assert torch.equal(one.bfloat16(), other), name
    images = networks.image("cvt_nano_32")
    assert rounded(images).dtype == torch.float32
    torch.testing.assert_close(rounded(images), exact(images), atol=0.2, rtol=0.1)
    half = cvt.deploy(model.bfloat16())
    assert half.dtype == torch.bfloat16


def test_wrong_images_are_refused_as_by_the_model():
    deployed = cvt.deploy(networks.small("cvt_13"))
    with pytest.raises(UserError, match="expected \\(batch, 3, height, width\\)"):
        deployed(torch.zeros(3, 64, 64))


@pytest.mark.parametrize("name", ["cvt_13", "tnt_nano_32"])
def test_it_is_exported_with_any_batch(name):
    model = networks.small(name)
    deployed = cvt.deploy(model, without=("pack",))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        deployed, (networks.image(name, 3),), dynamic_shapes=({0: batch},), strict=False
    )
    images = networks.image(name, 5, seed=1)
    with torch.no_grad():
        assert_same(program.module()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dtype": "flot32"}, "Did you mean 'float32'"),
        ({"dtype": torch.int16}, "expected one of float32"),
        ({"device": "cuda:99"}, "lacks"),
        ({"device": "toaster"}, "lacks"),
        ({"engine": "openvno"}, "Did you mean 'openvino'"),
        ({"without": ["pac"]}, "Did you mean 'pack'"),
    ],
)
def test_what_there_is_not_is_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        cvt.deploy(networks.small("cvt_nano_32"), **wrong)


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", torch.float16])
def test_a_type_that_the_cpu_only_imitates_is_refused(monkeypatch, dtype):
    pretend_cpu(monkeypatch, "avx512_f")
    with pytest.raises(UserError, match="this CPU has no instructions"):
        cvt.deploy(networks.small("cvt_nano_32"), dtype=dtype)


def test_a_model_with_nothing_to_rewrite_is_refused():
    with pytest.raises(UserError, match=r"Got a Linear with nothing in it.*cvt model"):
        cvt.deploy(nn.Linear(2, 2))


def test_a_block_of_another_make_is_left_alone():
    """What is built from our blocks with another mixer or MLP runs as it is."""
    model = networks.small("cvt_nano_32")
    model.stages[0].blocks[0].mlp = nn.Sequential(nn.Linear(32, 32))
    whole = nn.Sequential(model.stages[0].blocks[0])
    assert type(inference_copy(whole)[0]) is type(model.stages[0].blocks[0])


# --- `torch.compile` takes deployed networks whole, unless their weights are packed.


@torch.no_grad()
def check_compiled(sizes, cls_token):
    """One graph, equal outputs; a second size makes torch compile for all sizes."""
    stage = cvt.StageSpec(embed_dim=12, depth=2, num_heads=2, cls_token=cls_token)
    pool = "token" if cls_token else "avg"
    spec = cvt.BackboneSpec(stages=(stage,), num_classes=5, global_pool=pool)
    model = randomise(cvt.Backbone(spec)).eval()
    deployed = cvt.deploy(model, without=["pack"])
    torch.compiler.reset()
    compiled = torch.compile(deployed, fullgraph=True, backend="aot_eager")
    for size in sizes:
        images = torch.randn(3, 3, *size)
        expected = model(images)
        worst = (compiled(images) - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert worst <= 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize("cls_token", [True, False])
def test_a_deployed_network_is_one_graph(cls_token):
    check_compiled([(9, 12)], cls_token)


@pytest.mark.slow
@pytest.mark.parametrize("cls_token", [True, False])
def test_a_deployed_network_is_one_graph_at_any_size(cls_token):
    check_compiled([(9, 12), (14, 11), (20, 9)], cls_token)
