import pytest
import torch

import cvt
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import Preprocessing, Record

SMALL = {"embed_dim": (8, 16, 24), "num_heads": (1, 2, 3), "depth": (1, 1, 1)}


@pytest.fixture
def saved(tmp_path, randomise):
    """`saved(**changes)`: a small random CvT of those changes, and its checkpoint."""

    def save(**changes):
        model = randomise(cvt.create_model("cvt_13", **SMALL, **changes)).eval()
        names = tuple("abcd") if model.num_classes == 4 else None
        record = Record(
            model="cvt_13", spec=model.spec, preprocessing=Preprocessing(), class_names=names
        )
        path = tmp_path / "model.safetensors"
        save_checkpoint(path, model.state_dict(), record)
        return model, path

    return save


@torch.no_grad()
def test_the_file_alone_rebuilds_the_model(saved):
    model, path = saved(num_classes=4, kv_stride=1, act_layer="gelu", pos_embed="table")
    loaded = cvt.load(path)
    image = torch.randn(2, 3, 40, 56)
    assert torch.equal(loaded(image), model(image))
    assert loaded.spec == model.spec
    assert loaded.record.class_names == ("a", "b", "c", "d")
    assert not loaded.training


@torch.no_grad()
def test_another_number_of_classes_gets_a_fresh_head_and_the_same_features(saved):
    model, path = saved(num_classes=4)
    loaded = cvt.load(path, num_classes=7)
    image = torch.randn(1, 3, 32, 32)
    assert loaded(image).shape == (1, 7)
    assert loaded.record.class_names is None
    assert torch.equal(loaded.forward_features(image), model.forward_features(image))


@torch.no_grad()
def test_grey_images_are_seen_as_three_equal_channels_were(saved):
    model, path = saved(num_classes=4)
    loaded = cvt.load(path, in_chans=1)
    grey = torch.randn(2, 1, 32, 32)
    # The three kernels are summed first: float32 rounding of another order.
    torch.testing.assert_close(loaded(grey), model(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=0)
    assert loaded.record.preprocessing.input_size == (1, 224, 224)
    assert loaded.record.preprocessing.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert loaded.pretrained_cfg["input_size"] == (1, 224, 224)


@torch.no_grad()
def test_another_image_size_moves_the_position_tables(saved):
    model, path = saved(num_classes=4, pos_embed="table", img_size=64)
    loaded = cvt.load(path, img_size=(96, 80))
    assert loaded.stages[0].pos_embed.grid == (24, 20)
    image = torch.randn(1, 3, 96, 80)
    assert torch.equal(loaded(image), model(image))


def test_a_row_that_the_weights_do_not_fit_is_refused_with_the_difference(saved):
    _, path = saved(num_classes=4)
    with pytest.raises(cvt.UserError) as error:
        cvt.load(path, depth=2)
    assert "- stages.0.blocks.1" in str(error.value)


@pytest.mark.parametrize("name", ["cvt_31", "cvt_13.msft_in1k_383", "resnet51"])
def test_unknown_names(name):
    with pytest.raises(cvt.UserError, match=f"Unknown model '{name}'"):
        cvt.create_model(name)


def test_unknown_field_names_the_nearest():
    with pytest.raises(cvt.UserError, match=r"'num_clases'.*'num_classes'"):
        cvt.create_model("cvt_13", num_clases=4)


def test_a_tag_selects_the_preprocessing():
    cfg = cvt.create_model("cvt_13.msft_in1k_384", **SMALL).pretrained_cfg
    assert cfg["input_size"] == (3, 384, 384)
    assert (cfg["crop_mode"], cfg["crop_pct"]) == ("squash", 1.0)


def test_pretrained_loads_the_named_weights(monkeypatch, saved):
    _, path = saved()
    from cvt.zoo import create

    asked = []
    real = create.open_weights
    monkeypatch.setattr(create, "open_weights", lambda name: asked.append(name) or real(path))
    model = cvt.create_model("cvt_13", pretrained=True, num_classes=3)
    assert asked == ["cvt_13.msft_in1k"]
    assert model.training
    assert model.num_classes == 3


def test_rows_without_published_weights_say_so():
    with pytest.raises(cvt.UserError, match="no published weights for 'cvt_nano_32'"):
        cvt.create_model("cvt_nano_32", pretrained=True)


def test_list_models():
    assert cvt.list_models("cvt_?[13]") == ["cvt_13", "cvt_21"]
    assert len(cvt.list_models(pretrained=True)) == 7
