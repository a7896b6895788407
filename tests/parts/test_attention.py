import pytest
import torch

from cvt.parts.attention import Attention
from cvt.parts.projection import ConvProjection


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
