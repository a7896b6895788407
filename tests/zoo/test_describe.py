import pytest

import cvt
from cvt.systems.cvt import ROWS


def test_the_default_size_is_the_one_a_row_is_made_for():
    assert cvt.describe("cvt_13").size == (224, 224)
    assert cvt.describe("cvt_nano_32").size == (32, 32)


def test_grids_of_a_size_that_is_neither_square_nor_even():
    stages = cvt.describe("cvt_13", (97, 131)).stages
    assert [(s.grid, s.kv_grid) for s in stages] == [
        ((24, 33), (12, 17)),
        ((12, 17), (6, 9)),
        ((6, 9), (3, 5)),
    ]
    assert [(s.num_tokens, s.num_kv_tokens) for s in stages][2] == (55, 16)


def test_strided_queries_shrink_what_follows():
    spec = ROWS["cvt_13"].change(q_stride=(1, 2, 1))
    sheet = cvt.describe("cvt_13", 224, spec=spec)
    assert [s.grid for s in sheet.stages] == [(56, 56), (14, 14), (7, 7)]


def test_linear_projection_has_no_depthwise_part():
    spec = ROWS["cvt_13"].change(projection="linear")
    assert cvt.describe("cvt_13", spec=spec).macs_by_part["depthwise"] == 0


def test_mistakes():
    with pytest.raises(cvt.UserError, match=r"Unknown model 'cvt13'.*'cvt_13'"):
        cvt.describe("cvt13")
    with pytest.raises(cvt.UserError, match="too small"):
        cvt.describe("cvt_13", 2)
