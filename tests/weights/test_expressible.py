import pytest

from cvt.errors import UserError
from cvt.systems.cvt import PAPER_ROWS, ROWS
from cvt.weights.hugging_face import check_expressible

BOTH = [
    ({"attn_scale": "head_dim"}, "attn_scale='head_dim', expected 'dim'"),
    ({"norm_eps": 1e-6}, "norm_eps=1e-06"),
    ({"pos_embed": ("table", "none", "none")}, "pos_embed='table'"),
    ({"q_stride": (1, 1, 2)}, "q_stride=2"),
    ({"projection": ("conv", "linear", "conv")}, "projection='linear'"),
    ({"global_pool": "avg"}, "global_pool='avg'"),
    ({"act_layer": "silu"}, "act_layer='silu'"),
]
HUGGING_FACE_ONLY = [
    ({"projection": ("conv", "avg", "conv")}, "projection='avg'"),
    ({"cls_token": False}, "got cls_token of stage 3=False"),
    ({"cls_token": True}, "got cls_token of stage 1=True"),
    ({"depth": (1, 1, 10)}, "depth=1, expected at least 2 in stage 2"),
]


@pytest.mark.parametrize("layout", ["microsoft", "hugging_face"])
@pytest.mark.parametrize("name", PAPER_ROWS)
def test_the_published_rows_are_expressible(name, layout):
    check_expressible(ROWS[name].change(num_classes=3, in_chans=1, drop_path_rate=0.2), layout)


@pytest.mark.parametrize("layout", ["microsoft", "hugging_face"])
@pytest.mark.parametrize(("changes", "says"), BOTH)
def test_what_neither_computes_is_named(changes, says, layout):
    with pytest.raises(UserError, match=says):
        check_expressible(ROWS["cvt_13"].change(**changes), layout)


@pytest.mark.parametrize(("changes", "says"), HUGGING_FACE_ONLY)
def test_what_hugging_face_does_not_compute_is_named(changes, says):
    with pytest.raises(UserError, match=says):
        check_expressible(ROWS["cvt_13"].change(**changes), "hugging_face")


@pytest.mark.parametrize(("changes", "says"), HUGGING_FACE_ONLY)
def test_microsoft_computes_that(changes, says):
    check_expressible(ROWS["cvt_13"].change(**changes), "microsoft")
