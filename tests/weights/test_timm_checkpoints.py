"""Checkpoints of timm's networks: there and back, and what a stranger may write into one."""

import pytest
import torch
from timm.models import save_for_hf

import cvt
from cvt.errors import UserError
from cvt.systems.catalog import ROWS, spec_from_dict
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint, write_safetensors
from cvt.weights.record import Record
from randomise import randomise

SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
KINDS = [
    ("timm/test_resnet", {}),
    ("timm/test_vit", {"depth": 1, "global_pool": "avg"}),
    ("timm/test_efficientnet", {"drop_path_rate": 0.1}),
    ("timm/test_convnext", {}),
    ("timm/swin_tiny_patch4_window7_224", SWIN),
]


def made(name="timm/test_vit", **changes):
    model = randomise(cvt.create_model(name, **{"num_classes": 3, "img_size": 32, **changes}))
    return model.eval()


def saved(path, model, **changes):
    """Writes a model's checkpoint, with some of its spec's plain data replaced."""
    spec = model.spec.to_dict() | changes
    record = Record(model=f"timm/{model.spec.architecture}", spec=model.spec).to_dict()
    metadata = {"cvt": cvt.plain.json_text({**record, "spec": spec}), "format": "pt"}
    write_safetensors(path, model.state_dict(), metadata)
    return path


@pytest.mark.parametrize(("name", "changes"), KINDS)
def test_it_describes_itself(name, changes, tmp_path):
    model = made(name, **changes)
    cvt.save_pretrained(model, tmp_path, class_names=["a", "b", "c"])
    again = cvt.load(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        other = cvt.load(tmp_path, num_classes=5, in_chans=1, img_size=64)
        assert other(torch.zeros(1, 1, 64, 64)).shape == (1, 5)
    assert again.record == load_checkpoint(tmp_path / "model.safetensors")[1]
    assert (again.record.model, again.record.spec) == (name, model.spec)
    assert again.record.class_names == ("a", "b", "c")
    assert spec_from_dict(model.spec.to_dict()) == model.spec


def test_a_folder_of_timms_own_is_read(tmp_path):
    model = made("timm/test_resnet")
    save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]})
    again = cvt.load(tmp_path)
    assert again.record.model == "timm/test_resnet"
    with torch.no_grad():
        assert torch.equal(again(torch.ones(1, 3, 64, 64)), model(torch.ones(1, 3, 64, 64)))


def test_baselines_of_older_checkpoints_are_timms(tmp_path):
    with torch.device("meta"):
        expected = cvt.create_model("resnet18", num_classes=3, global_pool="avg").spec
    older = expected.to_dict() | {"kind": "baseline", "drop_rate": 0.0, "drop_path_rate": 0.0}
    del older["arguments"]
    assert spec_from_dict(older) == expected.change(drop_rate=0.0, drop_path_rate=0.0)
    assert expected.family == ROWS["resnet18"].family


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "test_vitt"}, "Got a network of timm's test_vitt for timm/test_vit"),
        ({"architecture": "test_resnet"}, "Got a network of timm's test_resnet for timm/test_vit"),
        ({"architecture": "hf-hub:some/thing"}, "Got a network of timm's hf-hub:some/thing for"),
        ({"architecture": "local-dir:."}, "Got a network of timm's local-dir:. for timm/test_vit"),
        ({"architecture": 3}, "expected text"),
        ({"arguments": {"pretrained": True}}, "Got the argument 'pretrained'"),
        ({"arguments": {"pretrained_cfg": "a1_in1k"}}, "Got the argument 'pretrained_cfg'"),
        ({"arguments": {"checkpoint_path": "/etc/passwd"}}, "Got the argument 'checkpoint_path'"),
        ({"arguments": {"pretrained_cfg_overlay": {"file": "x"}}}, "expected a number of at most"),
        ({"arguments": {"cache_dir": "x"}}, "Got the argument 'cache_dir'"),
        ({"arguments": {"pruned": True}}, "Got the argument 'pruned'"),
        ({"arguments": {"num_classes": 3}}, "Got the argument 'num_classes'"),
        ({"arguments": {"depth": 10**6}}, "expected a number of at most"),
        ({"arguments": {"depth": [1] * 1000}}, "expected a number of at most"),
        ({"arguments": {"embed_dim": 10**9}}, "expected a number of at most"),
        ({"arguments": {"mlp_ratio": [[1.0]]}}, "expected a number of at most"),
        ({"arguments": {"act_layer": "x" * 1000}}, "expected a number of at most"),
        ({"arguments": {"act_layer": "x.y"}}, "timm cannot build 'test_vit' with"),
        ({"arguments": {"norm_layer": "os.system"}}, "timm cannot build 'test_vit' with"),
        ({"arguments": {"block_fn": "eval"}}, "timm cannot build 'test_vit' with"),
        ({"arguments": {"not a name": 1}}, "Got the argument 'not a name'"),
        ({"arguments": {f"a{i}": 1 for i in range(99)}}, "Got 99 arguments"),
        ({"arguments": {"hue": 1}}, "Unknown argument 'hue' of timm's test_vit"),
        ({"arguments": {"patch_size": 0}}, "timm cannot build 'test_vit' with"),
        ({"arguments": {"depth": 500}}, "not those of the model that it describes"),
        ({"arguments": {"embed_dim": 16384}}, "not those of the model that it describes"),
        ({"num_classes": 4}, "not those of the model that it describes"),
        ({"img_size": [4096, 4096]}, "not those of the model that it describes"),
        ({"drop_rate": 2.0}, "expected a number"),
        ({"hue": 1}, "Got the unknown key 'hue'"),
    ],
)
def test_a_strangers_checkpoint_is_refused_before_it_is_built(
    changes, words, tmp_path, monkeypatch
):
    path = saved(tmp_path / "m.safetensors", made(), **changes)
    monkeypatch.setattr("cvt.zoo.create.build", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(UserError, match=words) as caught:
        cvt.load(path)
    assert len(str(caught.value)) < 3000


def test_a_checkpoint_of_ours_may_not_say_that_it_is_timms(tmp_path):
    ours = cvt.create_model("cvt_nano_32", depth=1, num_classes=3)
    save_checkpoint(
        tmp_path / "m.safetensors",
        ours.state_dict(),
        Record(model="timm/test_vit", spec=ours.spec),
    )
    with pytest.raises(UserError, match="Got a network of stages for timm/test_vit"):
        cvt.load(tmp_path / "m.safetensors")
    assert load_checkpoint(tmp_path / "m.safetensors")[1].model == "timm/test_vit"
