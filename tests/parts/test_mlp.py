import pytest
import torch

from cvt.parts.mlp import QuickGELU, make_mlp


def test_quick_gelu_is_x_sigmoid_1_702_x():
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    expected = x * torch.sigmoid(1.702 * x)
    # Two roundings of 1.702 and of its inverse, each half a unit in the last place.
    torch.testing.assert_close(QuickGELU()(x), expected, rtol=1e-14, atol=1e-15)


def test_quick_gelu_has_the_right_gradient():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGELU(), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_quick_gelu_leaves_its_input_alone(training, grad):
    x = torch.randn(8)
    before = x.clone()
    with torch.set_grad_enabled(grad):
        QuickGELU().train(training)(x)
    assert torch.equal(x, before)


def test_hidden_width_is_the_ratio():
    mlp = make_mlp(6, 2.5, "gelu", 0.0)
    assert mlp.fc1.weight.shape == (15, 6)
    assert mlp.fc2.weight.shape == (6, 15)
