import pytest
import torch

from cvt import Backbone
from cvt.errors import UserError
from cvt.systems.cvt import ROWS

TINY = ROWS["cvt_13"].change(
    embed_dim=(8, 16, 24), num_heads=(1, 2, 3), depth=(1, 1, 2), num_classes=5
)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"shape \(3, 32, 32\).*\(batch, 3, height, width\)"),
        ((1, 4, 32, 32), "expected"),
        ((1, 3, 2, 32), "2x32 pixels is too small.*smallest side is 3"),
    ],
)
def test_wrong_images_get_a_sentence(shape, message):
    model = Backbone(TINY).eval()
    for call in (model, model.forward_intermediates):
        with pytest.raises(UserError, match=message):
            call(torch.zeros(shape))


def test_the_smallest_image_passes():
    assert Backbone(TINY).eval()(torch.zeros(1, 3, 3, 3)).shape == (1, 5)


def test_set_input_size_moves_the_tables_and_keeps_the_answer(randomise):
    model = Backbone(TINY.change(pos_embed="table", img_size=64)).eval()
    randomise(model)
    image = torch.randn(1, 3, 96, 80)
    with torch.no_grad():
        before = model(image)
        model.set_input_size((96, 80))
        assert torch.equal(model(image), before)
    assert [stage.pos_embed.grid for stage in model.stages] == [(24, 20), (12, 10), (6, 5)]
    assert model.spec.img_size == (96, 80)


@pytest.mark.parametrize(
    "changes",
    [
        {"pos_embed": "table"},
        {"pos_embed": ("table", "none", "none")},
        {"pos_embed": ("none", "none", "table")},
        {"embed_kernel": (4, 2, 2), "embed_padding": 0},
        {"projection": "linear"},
        {"projection": ("conv", "linear", "avg")},
        {"kv_stride": 1},
        {"kv_stride": (4, 2, 1)},
        {"q_stride": (1, 2, 1)},
        {"q_stride": 2},
        {"cls_token": False},
        {"cls_token": True},
        {"cls_token": (True, False, False)},
        {"global_pool": "avg"},
        {"conv_kernel": (1, 3, 5)},
        {"qkv_bias": False},
        {"act_layer": "gelu", "attn_scale": "head_dim"},
    ],
    ids=str,
)
def test_every_choice_of_the_paper_s_tables_trains(randomise, changes):
    model = Backbone(TINY.change(**changes)).train()
    randomise(model)
    torch.manual_seed(
        0
    )  # stochastic depth leaves a block out for both images one time in a hundred
    model(torch.randn(2, 3, 57, 80)).square().sum().backward()
    # k's bias shifts all logits of a query alike, which softmax does not see; and of the last
    # block's queries only the class token's is read, which skips the convolution.
    unseen = ["attn.k.linear.bias"]
    if model.global_pool == "token":
        unseen += [f"stages.2.blocks.1.attn.q.{part}" for part in ("conv", "bn")]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not any(part in name for part in unseen):
            assert parameter.grad.abs().max() > 0, name
    sizes = [
        tuple(fmap.shape[2:])
        for fmap in model.eval().forward_intermediates(
            torch.zeros(1, 3, 57, 80), intermediates_only=True
        )
    ]
    assert sizes == model.spec.grids((57, 80))
