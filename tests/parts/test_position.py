import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvt.parts.position import PositionTable, resize_table


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
