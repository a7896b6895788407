"""How q, k and v are read from the grid, and what attention makes of them."""

import pytest
import torch
import torch.nn.functional as F

from cvt.parts.attention import Attention
from cvt.parts.projection import AvgProjection, ConvProjection, LinearProjection, SpatialReduction


def projected_by_hand(projection: ConvProjection, fmap, kernel, stride):
    """Depthwise convolution, BatchNorm and linear map in loops over outputs."""
    height, width = fmap.shape[2:]
    padded = F.pad(fmap, [kernel // 2] * 4)
    rows = range(0, height + 2 * (kernel // 2) - kernel + 1, stride)
    columns = range(0, width + 2 * (kernel // 2) - kernel + 1, stride)
    bn, tokens = projection.bn, []
    for y in rows:
        for x in columns:
            window = padded[:, :, y : y + kernel, x : x + kernel]
            value = (window * projection.conv.weight[:, 0]).sum(dim=(2, 3))
            value = (value - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
            tokens.append(value * bn.weight + bn.bias)
    return projection.linear(torch.stack(tokens, dim=1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_is_depthwise_then_batchnorm_then_linear(randomise, kernel, stride):
    projection = ConvProjection(4, kernel=kernel, stride=stride, bias=True).double().eval()
    randomise(projection)
    tokens = torch.randn(2, 30, 4, dtype=torch.float64)
    fmap = tokens.transpose(1, 2).reshape(2, 4, 5, 6)
    expected = projected_by_hand(projection, fmap, kernel, stride)
    # float64, sums of at most 25 + 4 terms of order 1.
    torch.testing.assert_close(projection(tokens, (5, 6), 0), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", [ConvProjection, AvgProjection])
def test_prefix_tokens_skip_to_the_linear_map(randomise, kind):
    projection = kind(4, kernel=3, stride=2, bias=True).eval()
    randomise(projection)
    tokens = torch.randn(2, 1 + 30, 4)
    read = projection(tokens, (5, 6), 1)
    assert read.shape == (2, 1 + 3 * (3 if kind is ConvProjection else 4), 4)
    torch.testing.assert_close(read[:, 0], projection.linear(tokens[:, 0]))
    torch.testing.assert_close(read[:, 1:], projection(tokens[:, 1:], (5, 6), 0))


def test_average_divides_by_the_full_window_at_borders():
    projection = AvgProjection(1, kernel=3, stride=2, bias=False)
    torch.nn.init.ones_(projection.linear.weight)
    read = projection(torch.ones(1, 16, 1), (4, 4), 0)
    # A corner window covers four of nine; rounding up adds a row of windows past the border.
    assert read[0, 0, 0].item() == pytest.approx(4 / 9)
    assert read.shape == (1, 9, 1)


def test_linear_reads_every_token_alike():
    projection = LinearProjection(4, bias=True)
    tokens = torch.randn(2, 7, 4)
    assert torch.equal(projection(tokens, (2, 3), 1), projection.linear(tokens))


def test_tokens_reach_the_convolution_without_a_copy():
    projection = ConvProjection(4, kernel=3, stride=1, bias=True)
    seen = []
    projection.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = torch.randn(2, 30, 4)
    projection(tokens, (5, 6), 0)
    assert seen[0].data_ptr() == tokens.data_ptr()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("ratio", [2, 3])
def test_reduction_is_a_map_of_whole_windows_then_layernorm(randomise, ratio, num_prefix):
    """A rest narrower than a window is not read; prefix tokens skip to the LayerNorm."""
    reduction = randomise(SpatialReduction(4, ratio=ratio, norm_eps=1e-6)).double()
    tokens = torch.randn(2, num_prefix + 5 * 7, 4, dtype=torch.float64)
    fmap = tokens[:, num_prefix:].view(2, 5, 7, 4)
    read = [tokens[:, index] for index in range(num_prefix)]
    for y in range(0, 5 - ratio + 1, ratio):
        for x in range(0, 7 - ratio + 1, ratio):
            window = fmap[:, y : y + ratio, x : x + ratio]
            read.append(
                torch.einsum("byxc,ocyx->bo", window, reduction.conv.weight) + reduction.conv.bias
            )
    read = torch.stack(read, dim=1)
    centred = read - read.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = scaled * reduction.norm.weight + reduction.norm.bias
    got = reduction(tokens, (5, 7), num_prefix)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def make(randomise, scale, dim=12, num_heads=3):
    q, k, v = (ConvProjection(dim, kernel=3, stride=s, bias=True) for s in (1, 2, 2))
    attention = Attention(dim, num_heads, q=q, k=k, v=v, scale=scale).double().eval()
    randomise(attention)
    return attention


def by_hand(attention, tokens, grid, num_prefix):
    """Equation 2 of the paper, one head, one query at a time."""
    q, k, v = (read(tokens, grid, num_prefix) for read in (attention.q, attention.k, attention.v))
    head_dim = q.shape[2] // attention.num_heads
    out = torch.zeros_like(q)
    for head in range(attention.num_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        for batch in range(q.shape[0]):
            for query in range(q.shape[1]):
                logits = (k[batch, :, part] @ q[batch, query, part]) * attention.scale
                weights = torch.exp(logits) / torch.exp(logits).sum()
                out[batch, query, part] = weights @ v[batch, :, part]
    return attention.proj(out)


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize("fused", [True, False])
def test_is_equation_2_with_the_scale_of_the_full_width(randomise, fused, num_prefix):
    attention = make(randomise, scale=12**-0.5)
    attention.fused_attn = fused
    tokens = 2 * torch.randn(2, num_prefix + 20, 12, dtype=torch.float64)
    expected = by_hand(attention, tokens, (4, 5), num_prefix)
    got = attention(tokens, (4, 5), num_prefix)
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)


def test_the_scale_matters(randomise):
    wide, narrow = (make(randomise, scale=d**-0.5) for d in (12, 4))
    narrow.load_state_dict(wide.state_dict())
    tokens = 2 * torch.randn(1, 20, 12, dtype=torch.float64)
    assert not torch.allclose(wide(tokens, (4, 5), 0), narrow(tokens, (4, 5), 0), rtol=1e-3)


def test_attention_map_is_what_weighs_the_values(randomise):
    attention = make(randomise, scale=12**-0.5)
    tokens = torch.randn(2, 21, 12, dtype=torch.float64)
    weights = attention.attention_map(tokens, (4, 5), 1)
    assert weights.shape == (2, 3, 21, 1 + 2 * 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 21, dtype=torch.float64))
    v = attention.v(tokens, (4, 5), 1).unflatten(2, (3, 4)).transpose(1, 2)
    mixed = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, attention(tokens, (4, 5), 1))


def test_dropout_of_weights_only_in_training(randomise):
    attention = make(randomise, scale=1.0)
    attention.attn_drop.p = 0.5
    tokens = torch.randn(1, 20, 12, dtype=torch.float64)
    assert torch.equal(attention(tokens, (4, 5), 0), attention(tokens, (4, 5), 0))
    attention.train()
    assert not torch.equal(attention(tokens, (4, 5), 0), attention(tokens, (4, 5), 0))


def test_large_logits_stay_finite(randomise):
    attention = make(randomise, scale=1e3)
    assert attention(torch.randn(1, 20, 12).double(), (4, 5), 0).isfinite().all()
