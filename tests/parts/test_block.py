"""The block, its MLP and activation."""

import pytest
import torch
from torch import nn

from cvt.parts.block import Block, PooledSkip
from cvt.parts.mlp import QuickGELU, make_mlp
from cvt.parts.stage import make_block
from cvt.systems.cvt import ROWS


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


class Shift(nn.Module):
    """A branch whose value shows in the sum."""

    def forward(self, tokens, grid=None, num_prefix=None):
        return tokens + 100


def test_both_branches_are_pre_norm_and_residual(randomise):
    block = Block(4, attn=Shift(), mlp=Shift(), norm_eps=1e-5).double()
    randomise(block)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    middle = x + block.norm1(x) + 100
    tokens, grid = block(x, (2, 3), 0)
    torch.testing.assert_close(tokens, middle + block.norm2(middle) + 100)
    assert grid == (2, 3)


def test_stochastic_depth_drops_branches_never_the_residual():
    block = Block(4, attn=Shift(), mlp=Shift(), norm_eps=1e-5, drop_path_rate=0.999999).train()
    x = torch.randn(2, 6, 4)
    assert torch.equal(block(x, (2, 3), 0)[0], x)
    assert not torch.equal(block.eval()(x, (2, 3), 0)[0], x)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 1)])
@pytest.mark.parametrize("num_prefix", [0, 1])
def test_strided_queries_shrink_the_grid_once_and_keep_the_prefix(randomise, grid, num_prefix):
    whole = ROWS["cvt_nano_32"].change(q_stride=2, depth=2)
    first, second = (make_block(whole, 0, index).eval() for index in (0, 1))
    assert second.skip is None
    randomise(first)
    tokens = torch.randn(2, num_prefix + grid[0] * grid[1], whole.stages[0].embed_dim)
    out, smaller = first(tokens, grid, num_prefix)
    assert smaller == ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    assert out.shape[1] == num_prefix + smaller[0] * smaller[1]


def test_pooled_skip_takes_the_largest_and_leaves_the_prefix():
    tokens = torch.arange(1.0, 18.0).view(1, 17, 1)
    pooled, grid = PooledSkip(kernel=3, stride=2)(tokens, (4, 4), 1)
    assert grid == (2, 2)
    assert pooled.flatten().tolist() == [1.0, 7.0, 9.0, 15.0, 17.0]
