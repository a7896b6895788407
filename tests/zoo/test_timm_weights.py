"""Weights that timm's own code downloads: of our rows, and of the baselines, which are timm's."""

import pytest
import timm
import torch

import cvt
from cvt.errors import UserError
from cvt.weights.checkpoint import write_safetensors
from cvt.weights.layouts import to_hugging_face, to_microsoft

SHALLOW = {"depth": (1, 1, 2)}


@pytest.fixture(scope="module")
def source():
    from randomise import randomise

    return randomise(cvt.create_model("cvt_13", **SHALLOW)).eval()


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin", "microsoft.pth"])
def file(request, source, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".safetensors":
        write_safetensors(path, to_hugging_face(source.state_dict()), {"format": "pt"})
    elif path.suffix == ".bin":
        torch.save(to_hugging_face(source.state_dict()), path)
    else:
        torch.save({"state_dict": to_microsoft(source.state_dict()), "epoch": 300}, path)
    return path


def create(file, **kwargs):
    overlay = {"file": str(file)}
    name = "cvt_13.msft_in1k"
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **SHALLOW, **kwargs
    ).eval()


@torch.no_grad()
def test_timm_loads_them_whole_with_another_head_grey_and_as_features(file, source):
    image = torch.randn(1, 3, 64, 48)
    assert torch.equal(create(file)(image), source(image))
    headless = create(file, num_classes=10)
    assert headless(image).shape == (1, 10)
    assert torch.equal(headless.forward_features(image), source.forward_features(image))
    grey = create(file, in_chans=1, num_classes=0)
    expected = source.forward_head(
        source.forward_features(image[:, :1].expand(-1, 3, -1, -1)), pre_logits=True
    )
    # The three kernels are summed first: float32 rounding of another order.
    torch.testing.assert_close(grey(image[:, :1]), expected, atol=1e-4, rtol=1e-4)
    pyramid = create(file, features_only=True)(image)
    _, maps = source.forward_intermediates(image)
    assert all(torch.equal(a, b) for a, b in zip(pyramid, maps, strict=True))


def test_out_of_reach_is_a_sentence(monkeypatch):
    monkeypatch.setattr("cvt.weights.source.is_out_of_reach", lambda repo_id: True)
    with pytest.raises(UserError, match=r"Cannot get timm's weights of 'resnet18': .* go online"):
        cvt.create_model("resnet18", pretrained=True)


def test_a_download_that_breaks_off_is_the_same_sentence(monkeypatch):
    def broken(*_, **__):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr("cvt.weights.source.is_out_of_reach", lambda repo_id: False)
    monkeypatch.setattr("cvt.weights.source.make_network", broken)
    with pytest.raises(UserError, match="Cannot get timm's weights of 'resnet18'"):
        cvt.create_model("resnet18", pretrained=True)
