import pytest
import torch

from cvt import Backbone
from cvt.errors import UserError
from cvt.weights.fit import adapt, diff, load_strict

STEM = "stages.0.embed.proj.weight"


def test_loads_every_tensor(tiny_spec, tiny_model, same):
    model = Backbone(tiny_spec)
    load_strict(model, tiny_model.state_dict(), source="x")
    assert same(model.state_dict(), tiny_model.state_dict())


def test_all_differences_are_shown_and_nothing_is_loaded(tiny_spec, tiny_model, same):
    model = Backbone(tiny_spec)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state_dict = dict(tiny_model.state_dict())
    del state_dict["norm.bias"]
    state_dict["extra.weight"] = torch.zeros(2, 3)
    state_dict["head.weight"] = torch.zeros(7, 24)
    with pytest.raises(UserError) as raised:
        load_strict(model, state_dict, source="some.pth")
    sentence, *lines = str(raised.value).splitlines()
    assert sentence.startswith("some.pth does not fit the model")
    assert lines == [
        "- norm.bias 24",
        "+ extra.weight 2x3",
        "~ head.weight 7x24, expected 5x24",
    ]
    assert same(model.state_dict(), before)


def test_long_lists_are_cut_short(tiny_model):
    lines = diff(tiny_model.state_dict(), {}).splitlines()
    total = sum("num_batches_tracked" not in name for name in tiny_model.state_dict())
    assert len(lines) == 13
    assert lines[-1] == f"- ... and {total - 12} more"


def test_another_model_s_checkpoint_is_refused(tiny_spec, tiny_model):
    deeper = Backbone(tiny_spec.change(depth=(1, 2, 4)))
    with pytest.raises(UserError, match=r"- stages\.2\.blocks\.3\.norm1\.weight 24"):
        load_strict(deeper, tiny_model.state_dict(), source="x")


@pytest.mark.parametrize("num_classes", [0, 3])
def test_another_number_of_classes_keeps_the_model_s_fresh_head(
    tiny_spec, tiny_model, num_classes, same
):
    model = Backbone(tiny_spec.change(num_classes=num_classes))
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    load_strict(model, adapt(tiny_model.state_dict(), model), source="x")
    assert same(model.head.state_dict(), head)
    assert same(model.stages.state_dict(), tiny_model.stages.state_dict())


def test_a_headless_checkpoint_gets_the_model_s_head(tiny_spec, tiny_model, make_model):
    headless = make_model(tiny_spec.change(num_classes=0))
    load_strict(tiny_model, adapt(headless.state_dict(), tiny_model), source="x")


def test_same_classes_keep_the_checkpoint_s_head(tiny_spec, tiny_model, same):
    adapted = adapt(tiny_model.state_dict(), Backbone(tiny_spec))
    assert same(adapted, tiny_model.state_dict())


def test_one_channel_sums_the_three(tiny_spec, tiny_model):
    grey = Backbone(tiny_spec.change(in_chans=1)).eval()
    load_strict(grey, adapt(tiny_model.state_dict(), grey), source="x")
    image = torch.randn(2, 1, 48, 64)
    with torch.no_grad():
        got, expected = grey(image), tiny_model(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_chans", [2, 4, 6])
def test_more_channels_repeat_the_three_at_the_same_scale(tiny_spec, tiny_model, in_chans):
    model = Backbone(tiny_spec.change(in_chans=in_chans))
    adapted = adapt(tiny_model.state_dict(), model)
    weight = tiny_model.state_dict()[STEM]
    assert adapted[STEM].shape[1] == in_chans
    torch.testing.assert_close(adapted[STEM][:, 1], weight[:, 1] * 3 / in_chans)
    load_strict(model, adapted, source="x")


def test_one_channel_checkpoint_fits_three_channels(tiny_spec, make_model):
    grey, model = make_model(tiny_spec.change(in_chans=1)), Backbone(tiny_spec)
    adapted = adapt(grey.state_dict(), model)
    torch.testing.assert_close(adapted[STEM].sum(dim=1, keepdim=True), grey.state_dict()[STEM])


def test_position_tables_follow_the_image_size(tiny_spec, make_model):
    spec = tiny_spec.change(pos_embed="table", img_size=(64, 96))
    small, large = make_model(spec), Backbone(spec.change(img_size=(96, 64)))
    adapted = adapt(small.state_dict(), large, img_size=(64, 96))
    load_strict(large.eval(), adapted, source="x")
    # 64x96 has as many positions as 96x64: shapes agree, and the values have to move all the same.
    name = "stages.2.pos_embed.table"
    assert not torch.equal(adapted[name], small.state_dict()[name])
    assert torch.equal(adapted[name][:, :1], small.state_dict()[name][:, :1])
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(large(image), small(image), rtol=1e-4, atol=1e-4)


def test_a_table_of_no_known_size_is_left_to_the_diff(tiny_spec, make_model):
    spec = tiny_spec.change(pos_embed="table", img_size=(64, 64))
    small, large = make_model(spec), Backbone(spec.change(img_size=(128, 128)))
    with pytest.raises(UserError, match=r"~ stages\.0\.pos_embed\.table"):
        load_strict(large, adapt(small.state_dict(), large, img_size=(96, 96)), source="x")
