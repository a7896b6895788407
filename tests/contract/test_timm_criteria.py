"""timm's bar: the criteria of its own tests/test_models.py, at its input sizes, on whole networks.

Hierarchical models are held to their grids there; those whose `forward_features` gives tokens
(the `NON_STD_FILTERS` of that file) to the criteria for tokens. We are held to both. TorchScript
is the one criterion left out: timm is removing it, and torch.export is our promise.
"""

import math

import pytest
import timm
import torch
from timm.models import FeatureInfo

from cvt.systems.catalog import timm_name
from networks import CVT_NAMES, FORMS

LIGHT = [
    *(name for name in CVT_NAMES if name != "cvt_w24"),
    *("vit_nano_32", "deit_nano_32", "cpvt_nano_32", "tnt_nano_32", "t2t_nano_32", "pvt_nano_32"),
]
EACH = [*LIGHT, pytest.param("cvt_w24", marks=pytest.mark.slow)]


def input_size(cfg: dict, target: int) -> tuple[int, int, int]:
    """A configuration's own size, or its least one where that is larger than the target."""
    own, least = cfg["input_size"], cfg["min_input_size"]
    return own if max(own) <= target else least


def within_bounds(fmap, channels: int, reduction: int, size: tuple[int, int]) -> bool:
    height, width = fmap.shape[2:]
    return (
        fmap.shape[1] == channels
        and height <= math.ceil(size[0] / reduction) + 1
        and width <= math.ceil(size[1] / reduction) + 1
        and not fmap.isnan().any()
    )


@pytest.mark.parametrize("name", EACH)
def test_forward_and_checkpointing(name):
    model = timm.create_model(name).eval()
    images = torch.randn(1, *input_size(model.default_cfg, 384))
    with torch.no_grad():
        expected = model(images)
    assert expected.shape == (1, model.num_classes)
    assert not expected.isnan().any()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*EACH, "t2t_vit_7", "t2t_vit_t_14", "cpvt_tiny", "pvt_tiny"])
def test_backward(name):
    model = timm.create_model(name, num_classes=42).train()
    out = model(torch.randn(2, *input_size(model.default_cfg, 128)))
    assert out.shape[-1] == 42
    assert not out.isnan().any()
    out.mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("feature_cls", [None, "getter"])
def test_features(name, feature_cls):
    extra = {"feature_cls": feature_cls} if feature_cls else {}
    model = timm.create_model(name, features_only=True, **extra).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    size = input_size(model.default_cfg, 96)
    with torch.no_grad():
        maps = model(torch.randn(1, *size))
    assert len(maps) == len(channels)
    for fmap, width, reduction in zip(maps, channels, reductions, strict=True):
        assert within_bounds(fmap, width, reduction, size[1:])


@pytest.mark.parametrize("name", EACH)
def test_intermediates(name):
    model = timm.create_model(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    size = input_size(model.default_cfg, 96)
    images = torch.randn(1, *size)
    with torch.no_grad():
        output, maps = model.forward_intermediates(images, output_fmt="NCHW")
        assert torch.equal(output, model.forward_features(images))
    assert len(maps) == len(info.channels()) >= 3
    for fmap, width, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert within_bounds(fmap, width, reduction, size[1:])
    model.set_grad_checkpointing()
    again, _ = model.forward_intermediates(images, output_fmt="NCHW")
    torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_configuration_and_head(name):
    """On the meta device, where whole networks are free: shapes are all that is asked."""
    with torch.device("meta"):
        name = timm_name(name)
        model = timm.create_model(name).eval()
        cfg, keys = model.default_cfg, set(model.state_dict())
        images = torch.randn(1, *cfg["input_size"])
        assert min(model.num_features, model.head_hidden_size, model.num_classes) > 0
        tokens = model.forward_features(images)
        pre_logits = model.forward_head(tokens, pre_logits=True)
        assert tokens.shape[-1] == model.num_features
        assert cfg["pool_size"] is None
        assert tokens.ndim == 3
        assert pre_logits.shape[1] == model.head_hidden_size
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert model(images).shape == pre_logits.shape
        model.reset_classifier(0, "")
        assert model(images).shape == tokens.shape
        bare = timm.create_model(name, num_classes=0, global_pool="").eval()
        assert bare(images).shape == tokens.shape
    classifiers = cfg["classifier"]
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    assert all(f"{classifier}.weight" in keys for classifier in classifiers)
    first_convs = cfg["first_conv"]
    first_convs = (first_convs,) if isinstance(first_convs, str) else first_convs
    assert isinstance(first_convs, tuple)
    assert all(f"{conv}.weight" in keys for conv in first_convs)
    assert bool(first_convs) != name.startswith("t2t")  # its first layer cuts windows out
