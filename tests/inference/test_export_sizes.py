"""Which images a file takes: the ranges, what is tried of them, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.inference.export.trace import AXES, Sizes, choose_sizes, smallest_free_side
from cvt.systems.catalog import ROWS


@settings(max_examples=50)
@given(
    name=st.sampled_from(sorted(ROWS)),
    dynamic=st.sets(st.sampled_from(AXES)),
    size=st.tuples(st.integers(32, 400), st.integers(32, 400)),
    batch=st.integers(1, 9),
)
def test_what_is_tried_is_allowed_and_covers_what_is_free(name, dynamic, size, batch):
    fixed = None if "batch" in dynamic else batch
    sizes = choose_sizes(ROWS[name], size, fixed, sorted(dynamic))
    assert set(sizes.free) == dynamic
    shapes = sizes.examples()
    for axis, place in (("batch", 0), ("height", 2), ("width", 3)):
        low, high = sizes.of(axis)
        tried = {shape[place] for shape in shapes}
        assert min(tried) >= low
        if axis in dynamic:
            assert high is None
            assert low in tried
            assert len(tried) > 1
        else:
            assert tried == {low} == {high}
    assert shapes[0][2:] == size
    assert Sizes.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes


def test_one_graph_holds_from_three_rows_on():
    assert smallest_free_side(ROWS["cvt_13"], (224, 224)) == 35  # 35, 9, 5, 3 rows
    assert smallest_free_side(ROWS["cvt_13"], (64, 300)) == 35
    assert smallest_free_side(ROWS["cvt_nano_32"], (32, 32)) == 17  # two rows are all it has
    assert smallest_free_side(ROWS["vit_small_patch16_224"], (224, 224)) == 48


def test_sizes_in_words():
    spec = ROWS["cvt_13"]
    fixed = choose_sizes(spec, (224, 160), 8, ())
    assert fixed.sentence() == "(8, 3, 224, 160)"
    free = choose_sizes(spec, (224, 160), None, AXES)
    assert free.sentence() == (
        "(batch, 3, height, width), batch from 1, height from 35, width from 35"
    )
    assert choose_sizes(spec, (64, 64), None, ()).batch == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dynamic": ["hight"]}, "Did you mean 'height'"),
        ({"dynamic": ["batch"], "batch_size": 2}, "Got batch_size 2 and a free batch"),
        ({"dynamic": [], "batch_size": 0}, "Got batch_size 0, expected 1 or more"),
        ({"dynamic": [], "size": (2, 64)}, "too small"),
    ],
)
def test_what_cannot_be_is_refused(wrong, sentence):
    request = {"size": (64, 64), "batch_size": None, **wrong}
    with pytest.raises(UserError, match=sentence):
        choose_sizes(ROWS["cvt_13"], **request)
