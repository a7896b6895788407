"""What timm knows of a model: its configurations, and whether they are true."""

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config

import cvt
from cvt.systems.cvt import PAPER_ROWS, ROWS
from cvt.weights.published import PUBLISHED
from networks import CVT_NAMES, NARROW

TAGS = {
    "cvt_13": ["msft_in1k", "msft_in1k_384", "msft_in22k_ft_in1k_384"],
    "cvt_21": ["msft_in1k", "msft_in1k_384", "msft_in22k_ft_in1k_384"],
    "cvt_w24": ["msft_in22k_ft_in1k_384"],
}
PUBLISHED_NAMES = [f"{name}.{tag}" for name, tags in TAGS.items() for tag in tags]


def meta_model(name: str, **changes):
    with torch.device("meta"):
        return timm.create_model(name, **changes)


def test_every_published_name_is_timms():
    assert timm.list_pretrained("cvt_*") == sorted(PUBLISHED_NAMES)
    assert list(PUBLISHED) == PUBLISHED_NAMES == cvt.list_models(pretrained=True)
    assert set(timm.list_models("cvt_*", pretrained=True)) == set(PUBLISHED_NAMES)
    for name in CVT_NAMES:
        assert timm.is_model(name)
        assert timm.models.is_model_pretrained(name) == (name in PAPER_ROWS)
    assert cvt.list_models("*mini*") == ["cvt_mini_32", "cvt_mini_96"]


@pytest.mark.parametrize("name", [*CVT_NAMES, *PUBLISHED_NAMES])
def test_configuration_is_true_of_the_network(name):
    model = meta_model(name).eval()
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    keys = model.state_dict()
    assert f"{cfg['first_conv']}.weight" in keys
    assert f"{cfg['classifier']}.weight" in keys
    assert keys[f"{cfg['classifier']}.weight"].shape[0] == cfg["num_classes"]
    assert cfg["architecture"] == name.partition(".")[0]
    assert cfg["fixed_input_size"] is False
    tokens = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    height, width = model.spec.grids(cfg["input_size"][1:])[-1]
    assert tokens.shape == (1, model.num_prefix_tokens + height * width, model.num_features)
    assert cfg["pool_size"] is None  # timm's word for tokens, which fastai's heads go by
    least = model(torch.empty(1, *cfg["min_input_size"], device="meta"))
    assert least.shape == (1, model.num_classes)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_weights_say_where_they_are_and_whose(name):
    cfg = timm.get_pretrained_cfg(name)
    short = name.partition(".")[0].replace("cvt_", "cvt-")
    suffix = ("-384" if "384" in name else "") + ("-22k" if "22k" in name else "")
    assert cfg.hf_hub_id == f"microsoft/{short}{suffix}"
    assert "apache-2.0" in cfg.license
    assert f"{cfg.architecture}.{cfg.tag}" == name


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_preprocessing(name):
    """At 224 the short side becomes 256 and the middle is cut out; at 384 all is squashed."""
    config = resolve_data_config(model=meta_model(name))
    at_384 = name.endswith("_384")
    assert config["input_size"] == ((3, 384, 384) if at_384 else (3, 224, 224))
    assert config["crop_pct"] == (1.0 if at_384 else 0.875)
    assert config["crop_mode"] == ("squash" if at_384 else "center")
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    resize = create_transform(**config).transforms[0]
    assert resize.size == ((384, 384) if at_384 else 256)


@pytest.mark.parametrize("name", CVT_NAMES)
def test_default_configuration(name):
    cfg = meta_model(name).pretrained_cfg
    assert cfg["tag"] == TAGS.get(name, ["untrained"])[0]
    side = ROWS[name].img_size
    assert cfg["input_size"] == (3, *side) or name == "cvt_w24"
    assert bool(cfg.get("hf_hub_id")) == (name in PAPER_ROWS)


def test_an_untrained_model_names_no_weights():
    for name in set(CVT_NAMES) - set(PAPER_ROWS):
        cfg = timm.get_pretrained_cfg(name)
        assert not cfg.has_weights
        with pytest.raises(cvt.UserError, match="no published weights"):
            cvt.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_our_front_door_takes_the_tag_too(name):
    with torch.device("meta"):
        model = cvt.create_model(name)
    assert model.pretrained_cfg == meta_model(name).pretrained_cfg


@pytest.mark.parametrize("name", CVT_NAMES)
def test_changes_reach_the_network_through_timm(name):
    changes = {"depth": (1, 1, 2), "num_classes": 7, "in_chans": 4, "kv_stride": 1}
    model = timm.create_model(name, **changes, **NARROW.get(name, {}))
    assert (model.num_classes, model.in_chans) == (7, 4)
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 2]
    assert {stage.kv_stride for stage in model.spec.stages} == {1}
    assert model(torch.randn(1, 4, 33, 40)).shape == (1, 7)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [({"kv_strid": 1}, "kv_stride"), ({"drop_path": 0.1}, "drop_path_rate")],
    ids=["kv_strid", "drop_path"],
)
@pytest.mark.parametrize("create", [timm.create_model, cvt.create_model], ids=["timm", "cvt"])
def test_unknown_keyword_names_the_nearest_field(create, wrong, nearest):
    with pytest.raises(cvt.UserError, match=f"Did you mean '{nearest}'"):
        create("cvt_13", **wrong)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("cvt_12", "cvt_1"), ("cvt13", "cvt_13"), ("cvt_13.msft_in1k_38", "cvt_13.msft_in1k_384")],
)
def test_unknown_name_names_the_nearest(wrong, nearest):
    with pytest.raises(cvt.UserError, match=f"Unknown model '{wrong}'.*Did you mean '{nearest}"):
        cvt.create_model(wrong)
