"""T2T's token layers against their formulas, written out in double precision, token by token."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cvt.parts.embed import AttentionTokens, PerformerTokens

SHAPE = {"kernel": 3, "stride": 2, "padding": 1}


def windows_by_hand(fmap, kernel, stride, padding):
    """All C * kernel**2 numbers of each window, row by row: channel first, then y, then x."""
    padded = F.pad(fmap, [padding] * 4)
    height, width = padded.shape[2:]
    return torch.stack(
        [
            padded[:, :, y : y + kernel, x : x + kernel].flatten(1)
            for y in range(0, height - kernel + 1, stride)
            for x in range(0, width - kernel + 1, stride)
        ],
        dim=1,
    )


def norm(module, x):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
    return centred / scale * module.weight + module.bias


def by_hand(layer, fmap, mix):
    tokens = norm(layer.norm1, windows_by_hand(fmap, **SHAPE))
    q, k, v = layer.q(tokens), layer.k(tokens), layer.v(tokens)
    out = v + layer.proj(mix(q, k, v))
    hidden = layer.mlp.fc1(norm(layer.norm2, out))
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return out + layer.mlp.fc2(hidden)


def softmax_mix(scale):
    def mix(q, k, v):
        out = torch.zeros_like(v)
        for batch in range(q.shape[0]):
            for query in range(q.shape[1]):
                weights = torch.exp(k[batch] @ q[batch, query] * scale)
                out[batch, query] = weights @ v[batch] / weights.sum()
        return out

    return mix


def performer_mix(w):
    """phi(x)_i = exp(w_i . x - |x|^2 / 2) / sqrt(features), then sums over all keys."""

    def phi(x):
        return torch.stack([torch.exp(row @ x - (x @ x) / 2) for row in w]) / len(w) ** 0.5

    def mix(q, k, v):
        out = torch.zeros_like(v)
        for batch in range(q.shape[0]):
            keys = [phi(key) for key in k[batch]]
            for query in range(q.shape[1]):
                answer = phi(q[batch, query])
                weights = torch.stack([answer @ key for key in keys])
                out[batch, query] = weights @ v[batch] / (weights.sum() + 1e-8)
        return out

    return mix


@pytest.mark.parametrize("size", [(5, 6), (8, 7)], ids=str)
def test_full_attention_is_scaled_by_the_incoming_width(randomise, size):
    layer = randomise(AttentionTokens(4, 8, **SHAPE)).double().eval()
    fmap = torch.randn(2, 4, *size, dtype=torch.float64)
    tokens, _ = layer(fmap)
    expected = by_hand(layer, fmap, softmax_mix((4 * 9) ** -0.5))
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-11)
    assert not torch.allclose(tokens, by_hand(layer, fmap, softmax_mix(8**-0.5)), atol=1e-4)
    assert all(each.bias is None for each in (layer.q, layer.k, layer.v))


@pytest.mark.parametrize("size", [(5, 6), (8, 7)], ids=str)
def test_performer_is_its_sum_over_random_features(randomise, size):
    layer = randomise(PerformerTokens(4, 8, **SHAPE)).double().eval()
    fmap = torch.randn(2, 4, *size, dtype=torch.float64)
    tokens, _ = layer(fmap)
    expected = by_hand(layer, fmap, performer_mix(layer.w))
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-11)
    assert all(each.bias is not None for each in (layer.q, layer.k, layer.v))


@pytest.mark.parametrize("width", [8, 48, 64])
def test_frozen_features_are_orthogonal_with_the_norm_of_their_number(width):
    """Half as many as channels: 32 of norm sqrt(32) in every published row, whose width is 64."""
    torch.manual_seed(0)
    layer = PerformerTokens(3, width, **SHAPE)
    w = layer.w
    assert "w" in layer.state_dict()
    assert "w" not in dict(layer.requires_grad_(True).named_parameters())
    assert w.shape == (width // 2, width)
    # float32: sums of up to 64 products of rows of norm 5.7.
    expected = width / 2 * torch.eye(width // 2)
    torch.testing.assert_close(w @ w.t(), expected, rtol=0, atol=1e-4)


def test_performer_drops_values_in_training_only(randomise):
    layer = randomise(PerformerTokens(4, 8, **SHAPE)).eval()
    fmap = torch.randn(1, 4, 8, 8)
    assert torch.equal(layer(fmap)[0], layer(fmap)[0])
    layer.train()
    assert not torch.equal(layer(fmap)[0], layer(fmap)[0])
    attention = randomise(AttentionTokens(4, 8, **SHAPE)).train()
    assert torch.equal(attention(fmap)[0], attention(fmap)[0])


@given(
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    kernel=st.sampled_from([2, 3]),
    stride=st.integers(1, 4),
    padding=st.integers(0, 1),
)
def test_the_grid_is_that_of_a_convolution(size, kernel, stride, padding):
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    fmap = torch.zeros(1, 2, *size)
    tokens, grid = AttentionTokens(2, 4, **window)(fmap)
    expected = F.conv2d(fmap, torch.zeros(1, 2, kernel, kernel), None, stride, padding)
    assert grid == tuple(expected.shape[2:])
    assert tokens.shape == (1, grid[0] * grid[1], 4)
