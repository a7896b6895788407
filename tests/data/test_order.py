import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.data import Share, epoch_order
from cvt.data.loader import chunks_of, set_batches, share_of_rank
from cvt.errors import UserError


@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 4),
    world=st.integers(1, 4),
    accum=st.integers(1, 3),
    start=st.integers(0, 3),
)
def test_together_the_processes_see_what_one_sees(count, batch, world, accum, start):
    size = batch * world * accum
    order = epoch_order(count, shuffle=True, seed=1, epoch=2)
    options = {"batch_size": size, "start_batch": start, "drop_last": True}
    whole = set_batches(order, **options, share=Share(accum_steps=world * accum))
    shares = [
        set_batches(order, **options, share=Share(rank, world, accum)) for rank in range(world)
    ]
    assert all(len(each) == len(whole) / world for each in shares)
    dealt = [shares[number % world][number // world] for number in range(len(whole))]
    assert dealt == whole
    seen = [number for chunk in whole for number in chunk]
    assert sorted(seen) == sorted(order[start * size : count // size * size])


def test_repeats_are_neighbours_in_a_batch_and_meet_in_no_chunk():
    order = epoch_order(12, shuffle=True, seed=0, epoch=0, repeats=3)
    images = epoch_order(12, shuffle=True, seed=0, epoch=0)[:4]
    assert [number % 12 for number in order] == [each for each in images for _ in range(3)]
    assert [number // 12 for number in order] == [0, 1, 2] * 4
    for chunk in chunks_of(order, Share(accum_steps=3)):
        assert len({number % 12 for number in chunk}) == 4


@given(count=st.integers(0, 50), size=st.integers(1, 9), world=st.integers(1, 5))
def test_every_image_is_measured_once_and_in_the_company_of_one_process(count, size, world):
    shares = [share_of_rank(count, size, rank, world) for rank in range(world)]
    assert len({len(each) for each in shares}) == 1
    full = [batch for share in shares for batch in share if batch]
    assert sorted(full) == share_of_rank(count, size, 0, 1)


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = [
        tuple(epoch_order(9, shuffle=True, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert len(set(orders)) == 3
    assert orders[0] == orders[3]
    np.testing.assert_array_equal(np.sort(orders[0]), np.arange(9))


def test_what_cannot_be_shared_out_is_said():
    with pytest.raises(UserError, match=r"batch_size 10 for 2 processes with accum_steps 2, .* 8"):
        chunks_of(range(10), Share(0, 2, 2))
