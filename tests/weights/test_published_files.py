"""Files as the authors published them, and files that are nearly so."""

import pytest
import timm
import torch

import cvt
from cvt.errors import UserError
from golden_recipe import check_logits, read_golden, weights

T2T = read_golden("yitu_t2t.json")["cases"]["t2t_vit_7"]
PVT = read_golden("whai362_pvt.json")["cases"]["pvt_tiny"]
T2T_FILE = "71.7_T2T_ViT_7.pth.tar"
DEIT_FILE = "deit_tiny_patch16_224-a1311bcf.pth"


@pytest.fixture(scope="module")
def pvt():
    return weights(PVT["shapes"])


@pytest.fixture(scope="module")
def deit():
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = timm.create_model("deit_tiny_patch16_224").state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.05
        for name, tensor in shapes.items()
    }


def test_t2t_s_averaged_weights_are_taken_and_compute_the_authors_logits(tmp_path):
    averaged = {f"module.{name}": each for name, each in weights(T2T["shapes"]).items()}
    last = {name: torch.zeros_like(each) for name, each in averaged.items()}
    content = {"epoch": 3, "state_dict": last, "state_dict_ema": averaged}
    torch.save(content, tmp_path / T2T_FILE)
    model = cvt.load(tmp_path / T2T_FILE)
    check_logits(model, "224x224", T2T["sizes"]["224x224"])
    assert model.record.model == "t2t_vit_7"
    assert model.record.licence == "Clear BSD (yitu-opensource/T2T-ViT)"
    assert model.record.preprocessing.crop_pct == 0.9
    assert "stages.2.pos_embed.table" not in dict(model.named_parameters())


def test_pvt_s_file_computes_the_authors_logits_at_another_size(tmp_path, pvt):
    torch.save(pvt, tmp_path / "mine.pth")
    model = cvt.load(tmp_path / "mine.pth", img_size=(192, 256))
    check_logits(model, "192x256", PVT["sizes"]["192x256"])
    assert model.record.model == "pvt_tiny"


@torch.no_grad()
def test_timm_loads_deit_s_file_into_ours_at_another_size_and_in_grey(tmp_path, deit):
    torch.save({"model": deit}, tmp_path / DEIT_FILE)
    changes = {"img_size": 96, "in_chans": 1, "num_classes": 5}
    overlay = {"file": str(tmp_path / DEIT_FILE)}
    by_timm = timm.create_model(
        "cvt_deit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **changes
    ).eval()
    by_us = cvt.load(tmp_path / DEIT_FILE, **changes)
    image = torch.randn(1, 1, 96, 96)
    assert torch.equal(by_timm.forward_features(image), by_us.forward_features(image))
    assert by_us.record.model == "deit_tiny_patch16_224"


WRONG = {
    "cut short": (lambda t: dict(list(t.items())[:60]), "cut short"),
    "one more": (lambda t: {**t, "extra.bias": torch.zeros(2)}, "Got 'extra.bias' in a checkpoint"),
    "one less": (
        lambda t: {name: each for name, each in t.items() if name != "block2.1.norm2.bias"},
        r"is none of (?s:.*)nearest is pvt_tiny, which differs in\n- stages\.1\.blocks\.1\.norm2",
    ),
    "another shape": (
        lambda t: {**t, "block1.0.mlp.fc1.bias": torch.zeros(3)},
        r"~ stages\.0\.blocks\.0\.mlp\.fc1\.bias 3, expected 512",
    ),
    "uneven": (
        lambda t: {**t, "block1.0.attn.kv.weight": torch.zeros(127, 64)},
        r"a first axis that is a multiple of 2",
    ),
    "deeper": (
        lambda t: {**t, "block1.2.norm1.weight": torch.zeros(64)},
        r"widths 64/128/320/512 and depths 3/2/2/2",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_file_that_is_nearly_pvt_s_is_refused(tmp_path, pvt, how):
    change, says = WRONG[how]
    torch.save(change(pvt), tmp_path / "pvt_tiny.pth")
    with pytest.raises(UserError, match=says):
        cvt.load(tmp_path / "pvt_tiny.pth")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tnt_s_legacy_patch16_224", "first arXiv version"),
        ("pvt_v2_b0", "no checkpoint of a known network"),
        ("twins_svt_small", "no checkpoint of a known network"),
        ("deit3_small_patch16_224", r"Got 'blocks\.0\.ls1\.gamma', .* and 21 more"),
    ],
)
def test_a_relative_of_timm_s_that_we_do_not_have_is_refused(tmp_path, name, says):
    with torch.device("meta"):
        shapes = timm.create_model(name).state_dict()
    torch.save({key: torch.zeros(t.shape) for key, t in shapes.items()}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=says):
        cvt.load(tmp_path / "m.pth")
