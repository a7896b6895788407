import pytest
import torch

from cvt import Backbone
from cvt.errors import UserError
from cvt.systems.cvt import ROWS
from cvt.weights.fit import recognise_variant


def on_meta(spec):
    with torch.device("meta"):
        return Backbone(spec).state_dict()


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_recognised_with_its_own_head_and_channels(name):
    row = ROWS[name]
    assert recognise_variant(on_meta(row), source="x") == (name, row)
    changed = row.change(num_classes=7, in_chans=1)
    assert recognise_variant(on_meta(changed), source="x") == (name, changed)
    headless = row.change(num_classes=0)
    assert recognise_variant(on_meta(headless), source="x") == (name, headless)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"depth": (1, 2, 4)}, "3 stages of widths 64/192/384 and depths 1/2/4"),
        ({"embed_dim": (64, 192, 768)}, "widths 64/192/768"),
        ({"embed_kernel": (4, 3, 3)}, "embedding kernels 4/3/3"),
        ({"conv_kernel": 5}, "projection kernels 5/5/5"),
        ({"projection": ("linear", "conv", "conv")}, "projection kernels 0/3/3"),
        ({"cls_token": False}, "class tokens no/no/no"),
        ({"pos_embed": "table"}, "is none of"),
        ({"mlp_ratio": 2.0}, "is none of"),
    ],
)
def test_no_known_row_says_what_was_found(changes, says):
    with pytest.raises(UserError, match=says):
        recognise_variant(on_meta(ROWS["cvt_13"].change(**changes)), source="x")


def test_stages_alone_are_refused():
    state_dict = {n: t for n, t in on_meta(ROWS["cvt_13"]).items() if n.startswith("stages.")}
    with pytest.raises(UserError, match=r"lacks norm\.weight and norm\.bias"):
        recognise_variant(state_dict, source="x")
