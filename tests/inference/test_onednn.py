"""Packed linear maps, and the private operators of torch's that they stand on."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cvt
import networks
from cvt import runtime
from cvt.errors import UserError
from cvt.inference import onednn
from cvt.inference.forms import PackedLinear, add_linear, inference_copy
from cvt.inference.passes import pack_linears
from processors import pretend_cpu
from randomise import randomise

has_packing = pytest.mark.skipif(
    not onednn.can_pack(torch.float32), reason="torch is built without oneDNN's packed products"
)


@pytest.fixture
def paying(monkeypatch):
    """Packing as on a machine on which it pays."""
    pretend_cpu(monkeypatch, "avx512_f")


@has_packing
def test_the_contract_of_the_private_operators():
    """By name and signature, as of torch 2.11 to 2.15."""
    op = torch.ops.mkldnn._linear_pointwise
    assert [each.name for each in op.default._schema.arguments] == [
        *("X", "W", "B", "attr", "scalars", "algorithm")
    ]
    assert [each.name for each in op.binary._schema.arguments] == ["X", "other", "W", "B", "attr"]
    packed = onednn.pack(torch.randn(6, 4))
    assert packed.is_mkldnn
    assert packed.shape == (6, 4)


@has_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), (2, 0)])
def test_packed_maps_compute_the_same(rows, bias):
    linear = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x, residual = torch.randn(*rows, 24), torch.randn(*rows, 40)
    packed = PackedLinear(linear)
    kept = residual.clone()
    torch.testing.assert_close(packed(x), linear(x))
    torch.testing.assert_close(add_linear(packed, x, residual), linear(x) + residual)
    assert torch.equal(residual, kept)
    assert torch.equal(add_linear(linear, x, residual), linear(x) + residual)
    assert torch.equal(residual, kept)


@has_packing
@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.Identity()]
)
def test_activations_are_fused(activation):
    linear = nn.Linear(24, 40).requires_grad_(False)
    x = 4 * torch.randn(3, 7, 24)
    torch.testing.assert_close(PackedLinear(linear, activation)(x), activation(linear(x)))


@has_packing
def test_gaps_between_rows_are_no_matter():
    linear = nn.Linear(24, 40).requires_grad_(False)
    x, residual = torch.randn(2, 5, 24)[:, 1:], torch.randn(2, 6, 40)[:, :4]
    expected = F.linear(x, linear.weight, linear.bias) + residual
    torch.testing.assert_close(PackedLinear(linear).add(x, residual), expected)


def test_an_activation_that_there_is_not_stays_behind_the_map():
    assert onednn.activation_of(nn.Tanh()) is None


@has_packing
@pytest.mark.parametrize("name", networks.NAMES)
def test_all_linear_maps_are_packed_and_outputs_kept(paying, name):
    model, images = networks.small(name).eval(), networks.image(name, 3)
    network = inference_copy(model)
    assert pack_linears(network) == sum(isinstance(each, nn.Linear) for each in model.modules())
    assert not any(isinstance(each, nn.Linear) for each in network.modules())
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


@has_packing
def test_a_packed_network_is_copied_and_saved_but_not_moved(paying):
    deployed = cvt.deploy(networks.small("cvt_nano_32"))
    assert "pack 25" in repr(deployed)
    images = networks.image("cvt_nano_32")
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other(images), deployed(images))
    with pytest.raises(UserError, match="packed for this CPU"):
        deployed.double()


@pytest.mark.parametrize("reason", ["float64", "no operators", "does not pay"])
def test_plain_maps_stay_where_packing_is_not_to_be_had(monkeypatch, reason):
    model = networks.small("cvt_nano_32")
    pretend_cpu(monkeypatch, *(() if reason == "does not pay" else ("avx512_f",)))
    if reason == "no operators":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = inference_copy(model.double() if reason == "float64" else model)
    assert pack_linears(network) == 0


def test_instructions_are_asked_of_the_cpu(monkeypatch):
    for named, dtype in (("avx512_bf16", torch.bfloat16), ("avx512_fp16", torch.float16)):
        pretend_cpu(monkeypatch, named)
        assert runtime.cpu_computes(dtype)
        pretend_cpu(monkeypatch, "avx512_f")
        assert not runtime.cpu_computes(dtype)
    assert onednn.packing_pays(torch.float32)
    pretend_cpu(monkeypatch)
    assert not onednn.packing_pays(torch.float32)
    assert onednn.packing_pays(torch.bfloat16)


@has_packing
@pytest.mark.slow
def test_a_packed_network_may_be_compiled(paying):
    """The compiler of torch takes no weights that it has not packed itself."""
    model = randomise(cvt.create_model("cvt_nano_32", depth=1)).eval()
    deployed = cvt.deploy(model)
    assert deployed.rewritten["pack"]
    images = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    with torch.no_grad():
        compiled, expected = torch.compile(deployed)(images), model(images)
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()
