"""timm's networks in the forms that infer: rewritten where a pass knows something, exported."""

import pytest
import torch

import cvt
from cvt.inference.passes import PASSES
from randomise import randomise

SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
KINDS = [
    ("timm/test_resnet", {}, {"batchnorm"}),
    ("timm/test_efficientnet", {}, {"batchnorm"}),
    ("timm/test_vit", {"depth": 1}, set()),
    ("timm/test_convnext", {}, set()),
    ("timm/swin_tiny_patch4_window7_224", SWIN, set()),
]
BY_KIND = pytest.mark.parametrize(("name", "changes", "algebra"), KINDS)


def made(name, **changes):
    model = randomise(cvt.create_model(name, **{"num_classes": 3, "img_size": 32, **changes}))
    return model.eval()


@BY_KIND
def test_deployed_it_computes_the_same_and_says_what_was_done(name, changes, algebra):
    model = made(name, **changes).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fast = cvt.deploy(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), atol=1e-9, rtol=1e-9)
    assert fast.rewritten.keys() - {"channels_last"} == algebra
    assert all(each in fast.extra_repr() for each in algebra)
    plain = cvt.deploy(model, without=PASSES)
    assert "rewritten: nothing" in plain.extra_repr()
    with torch.no_grad():
        assert torch.equal(plain(images), model(images))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".xml"])
@pytest.mark.parametrize(("name", "changes", "algebra"), KINDS[:3])
def test_exported_it_is_checked(name, changes, algebra, suffix, tmp_path):
    pytest.importorskip({".onnx": "onnxscript", ".xml": "openvino"}.get(suffix, "torch"))
    done = cvt.export(made(name, **changes), tmp_path / f"m{suffix}", image_size=32)
    assert max(check.error for check in done.checks) < done.limit
    assert done.metadata.record.model == name


@pytest.mark.parametrize(("name", "changes", "algebra"), [KINDS[0], KINDS[2]])
def test_openvino_computes_it(name, changes, algebra):
    pytest.importorskip("openvino")
    model = made(name, **changes)
    images = torch.randn(2, 3, 32, 32)
    fast = cvt.deploy(model, engine="openvino")
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), atol=1e-3, rtol=1e-3)


def test_its_attention_is_not_shown_which_is_said():
    with pytest.raises(cvt.UserError, match="without an attention of this library's, expected a"):
        cvt.attention_maps(made("timm/test_vit"), torch.zeros(1, 3, 32, 32))
