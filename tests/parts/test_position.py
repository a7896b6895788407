import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from cvt.parts.position import ConditionalPosition, PositionTable, SinusoidTable, resize_table


def test_adds_the_table_at_its_own_grid():
    table = PositionTable(4, (2, 3), num_prefix=1)
    torch.nn.init.normal_(table.table)
    tokens = torch.randn(2, 7, 4)
    assert torch.equal(table(tokens, (2, 3), 1), tokens + table.table)


@given(
    old=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    new=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    num_prefix=st.integers(0, 2),
)
def test_prefix_rows_survive_any_resize_and_a_constant_stays_constant(old, new, num_prefix):
    table = torch.full((1, num_prefix + old[0] * old[1], 3), 0.5)
    table[:, :num_prefix] = torch.arange(num_prefix * 3).view(1, num_prefix, 3)
    resized = resize_table(table, old, new, num_prefix)
    assert resized.shape == (1, num_prefix + new[0] * new[1], 3)
    assert torch.equal(resized[:, :num_prefix], table[:, :num_prefix])
    # Bicubic weights sum to 1 up to float32 rounding of about a dozen terms.
    torch.testing.assert_close(
        resized[:, num_prefix:], torch.full_like(resized[:, num_prefix:], 0.5), atol=1e-6, rtol=0
    )


def test_same_number_of_positions_but_another_shape_is_interpolated():
    table = torch.randn(1, 16, 3)
    assert not torch.equal(resize_table(table, (2, 8), (4, 4), 0), table)


def test_rows_and_columns_keep_their_direction():
    ramp = torch.arange(4.0).view(4, 1).expand(4, 4).reshape(1, 16, 1)
    resized = resize_table(ramp, (4, 4), (8, 6), 0).view(8, 6)
    assert (resized[1:] - resized[:-1] > -1e-5).all()
    torch.testing.assert_close(resized[:, 0], resized[:, 5])


def test_set_grid_keeps_what_is_added_there():
    table = PositionTable(4, (4, 4), num_prefix=1)
    torch.nn.init.normal_(table.table)
    tokens = torch.randn(1, 1 + 6 * 5, 4)
    before = table(tokens, (6, 5), 1)
    table.set_grid((6, 5), 1)
    assert table.grid == (6, 5)
    assert torch.equal(table(tokens, (6, 5), 1), before)
    assert table.table.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_table_dtype(dtype):
    assert resize_table(torch.randn(1, 4, 2, dtype=dtype), (2, 2), (3, 3), 0).dtype == dtype


def test_sinusoid_is_its_formula_and_never_trained():
    table = SinusoidTable(6, (2, 3), num_prefix=1)
    assert (list(table.parameters()), list(table.state_dict())) == ([], ["table"])
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** ((channel - channel % 2) / 6)
            value = math.cos(angle) if channel % 2 else math.sin(angle)
            # A value of size 1, rounded to float32 once.
            assert table.table[0, position, channel].item() == pytest.approx(value, abs=1e-7)
    table.set_grid((4, 4), 1)
    assert (list(table.parameters()), list(table.state_dict())) == ([], ["table"])
    assert table.table.shape == (1, 17, 6)


def linear_resize(values, length):
    """Bilinear in one direction, with half-pixel centres and the border repeated."""
    out = []
    for index in range(length):
        at = min(max((index + 0.5) * len(values) / length - 0.5, 0), len(values) - 1)
        low = min(int(at), len(values) - 2)
        out.append(values[low] * (1 - (at - low)) + values[low + 1] * (at - low))
    return torch.stack(out)


@pytest.mark.parametrize("grid", [(6, 9), (2, 3), (5, 4)], ids=str)
def test_bilinear_weighs_the_two_nearest_without_antialiasing(grid):
    table = torch.randn(1, 1 + 4 * 5, 3)
    resized = resize_table(table, (4, 5), grid, 1, "bilinear")
    rows = linear_resize(table[0, 1:].view(4, 5, 3), grid[0])
    expected = linear_resize(rows.transpose(0, 1), grid[1]).transpose(0, 1)
    torch.testing.assert_close(resized[0, 1:].view(*grid, 3), expected, rtol=0, atol=1e-5)
    assert torch.equal(resized[:, :1], table[:, :1])


@pytest.mark.parametrize("grid", [(8, 10), (2, 3)], ids=str)
def test_bicubic_is_timms(grid):
    table = torch.randn(1, 1 + 4 * 5, 3)
    theirs = resample_abs_pos_embed(table, list(grid), [4, 5], num_prefix_tokens=1)
    ours = resize_table(table, (4, 5), grid, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for mode in ("bilinear", "bicubic_no_antialias"):
        assert not torch.allclose(ours, resize_table(table, (4, 5), grid, 1, mode), atol=1e-3)


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
def test_generator_adds_what_each_token_sees_around_it(randomise, num_prefix):
    generator = randomise(ConditionalPosition(3)).double()
    tokens = torch.randn(2, num_prefix + 4 * 5, 3, dtype=torch.float64)
    got = generator(tokens, (4, 5), num_prefix)
    assert torch.equal(got[:, :num_prefix], tokens[:, :num_prefix])
    fmap = tokens[:, num_prefix:].view(2, 4, 5, 3)
    expected = fmap + generator.conv.bias
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            for y in range(max(0, -dy), min(4, 4 - dy)):
                for x in range(max(0, -dx), min(5, 5 - dx)):
                    kernel = generator.conv.weight[:, 0, dy + 1, dx + 1]
                    expected[:, y, x] += fmap[:, y + dy, x + dx] * kernel
    torch.testing.assert_close(got[:, num_prefix:], expected.flatten(1, 2), rtol=0, atol=1e-12)
