"""timm's networks by `timm/NAME`: made, described, listed, with timm's weights and without."""

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import cvt
from cvt.cli.main import main
from cvt.errors import UserError
from cvt.systems.catalog import ROWS, row_of
from cvt.systems.timm_networks import NOT_ARGUMENTS, TimmSpec, timm_config, timm_names, timm_row
from cvt.weights.fit import check_record
from cvt.weights.record import Preprocessing, Record
from cvt.weights.source import record_of_timm
from randomise import randomise

RESNET = "timm/test_resnet.r160_in1k"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """`HF_HUB_OFFLINE=1` with an empty cache, as huggingface_hub reads them at its import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cached(offline):
    """The weights of `RESNET` as an earlier download left them in the cache."""
    repository = offline / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    network = randomise(timm.create_model("test_resnet")).eval()
    save_file(network.state_dict(), snapshot / "model.safetensors", metadata={"format": "pt"})
    return network


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_it_is_timms_network_with_a_spec(name):
    theirs, ours = timm.create_model(name).eval(), cvt.create_model(f"timm/{name}").eval()
    assert type(ours) is type(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
    assert ours.spec == row_of(f"timm/{name}")
    other = cvt.create_model(f"timm/{name}", num_classes=7, in_chans=1, img_size=64).eval()
    assert (other.num_classes, other.in_chans, other.spec.img_size) == (7, 1, (64, 64))
    assert other(torch.zeros(1, 1, 64, 64)).shape == (1, 7)


def test_a_row_and_its_name_at_timm_are_one():
    row, other = ROWS["resnet18"], row_of("timm/resnet18")
    assert row.family == other.family == "timm's resnet18"
    assert row.change(img_size=64) == other.change(img_size=64)
    assert TimmSpec.from_dict(other.to_dict()) == other


def test_what_timm_takes_is_an_argument_and_what_it_does_not_take_named():
    model = cvt.create_model("timm/test_vit", depth=1, drop_path_rate=0.1, qk_norm=True)
    assert model.spec.arguments == {"depth": 1, "qk_norm": True}
    assert model.spec.drop_path_rate == 0.1
    with pytest.raises(
        UserError, match=r"Unknown argument 'dpeth' of timm's test_vit. Did you mea"
    ):
        cvt.create_model("timm/test_vit", dpeth=1)
    with pytest.raises(UserError, match=r"timm cannot build 'test_resnet' .*pool type: token"):
        cvt.create_model("timm/test_resnet", global_pool="token")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/resnet_18", "Unknown model 'timm/resnet_18'. Did you mean 'timm/resnet18'"),
        (
            "timm/resnet18.a1_in",
            "no weights 'a1_in' of 'resnet18'. Did you mean 'timm/resnet18.a1_",
        ),
        ("timm/cvt_13", "a network of this library that timm only lists, .* ours is 'cvt_13'"),
        ("timm/cvt_vit_tiny_patch16_224", "ours is 'vit_tiny_patch16_224'"),
        ("timm/hf-hub:some/thing", "Unknown model 'timm/hf-hub:some/thing'"),
        ("timm/local-dir:.", "Unknown model 'timm/local-dir:'"),
        ("timm/", "Unknown model 'timm/'"),
    ],
)
def test_a_name_that_is_none_is_one_sentence(name, words):
    for ask in (cvt.create_model, cvt.load, cvt.describe):
        with pytest.raises(UserError, match=words) as caught:
            ask(name)
        assert "\n" not in str(caught.value)


def test_the_sentence_about_names_needs_no_row_of_ours():
    with torch.device("meta"):
        ours, theirs = (cvt.create_model(f"{at}vit_tiny_patch16_224") for at in ("", "timm/"))
    assert isinstance(ours, cvt.Backbone)
    assert not isinstance(theirs, cvt.Backbone)
    with pytest.raises(UserError, match="Got a network of stages for timm/vit_tiny_patch16_224"):
        check_record(Record(model="timm/vit_tiny_patch16_224", spec=ours.spec), "a file")
    with pytest.raises(UserError, match="timm's vit_tiny_patch16_224 for timm/test_vit in a file"):
        check_record(Record(model="timm/test_vit", spec=theirs.spec), "a file")


# --- timm's weights.


def test_weights_come_from_timms_cache_and_say_what_they_are(cached):
    model = cvt.load(RESNET)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model(images), cached(images))
    record = model.record
    assert (record.model, record.source, record.licence) == (
        "timm/test_resnet",
        RESNET,
        timm_config(RESNET)["license"],
    )
    assert record.preprocessing.mean == (0.5, 0.5, 0.5)
    assert record.preprocessing.size == (160, 160)
    assert len(record.class_names) == 1000
    trained = cvt.create_model("timm/test_resnet", pretrained=True, num_classes=4, in_chans=1)
    assert trained.training
    assert trained.record.class_names is None
    assert trained.record.preprocessing.mean == (0.5,)
    with torch.no_grad():
        assert trained.eval()(images[:, :1]).shape == (2, 4)
        # The kernels of three channels are summed in another order.
        grey = images[:, :1].expand(-1, 3, -1, -1)
        expected = cached.forward_features(grey)
        torch.testing.assert_close(
            trained.forward_features(images[:, :1]), expected, atol=1e-3, rtol=1e-3
        )


def test_features_and_overlays_are_for_timms_builder(tmp_path, cached):
    save_file(cached.state_dict(), tmp_path / "m.safetensors", metadata={"format": "pt"})
    overlay = {"file": str(tmp_path / "m.safetensors")}
    images = torch.randn(1, 3, 64, 64)
    model = cvt.create_model("timm/test_resnet", True, pretrained_cfg_overlay=overlay).eval()
    pyramid = cvt.create_model("timm/test_resnet", True, features_only=True).eval()
    with torch.no_grad():
        assert torch.equal(model(images), cached(images))
        assert [fmap.shape[2] for fmap in pyramid(images)] == [32, 16, 8, 4, 2]


@pytest.mark.parametrize("name", [RESNET, "timm/test_resnet", "timm/resnet18.tv_in1k"])
def test_offline_without_them_says_what_to_do(name, offline):
    for ask in (cvt.load, lambda name: cvt.create_model(name, pretrained=True)):
        with pytest.raises(UserError, match=r"not in the cache.*go online, give the path.*--model"):
            ask(name)


def test_a_network_without_weights_says_so():
    bare = next(n for n in timm_names("timm/*") if "hf_hub_id" not in timm_config(n))
    with pytest.raises(UserError, match=r"timm has no trained weights of .*; train it by --model"):
        cvt.load(bare)


def test_a_vits_table_is_brought_to_another_size_as_timm_does_it(tmp_path):
    model = randomise(cvt.create_model("timm/test_vit", num_classes=3)).eval()
    cvt.save_pretrained(model, tmp_path)
    larger = cvt.load(tmp_path, img_size=192)
    model.set_input_size(img_size=(192, 192))
    images = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        assert torch.equal(larger(images), model(images))


# --- What is known without weights.


def test_what_timm_says_of_its_weights_is_understood_or_refused():
    """Two mark their images by a border, which no preprocessing here does."""
    names, refused = timm_names("timm/*", pretrained=True), set()
    assert len(names) > 1000
    for name in names:
        try:
            prepared = Preprocessing.from_timm(dict(timm_config(name)))
        except UserError:
            refused.add(name.partition("_")[0])
        else:
            assert prepared.size == timm_row(name).img_size
    assert refused == {"timm/deepseek", "timm/volo"}
    assert len(record_of_timm(RESNET).class_names) == 1000


def test_nothing_of_timms_builder_passes_for_an_argument():
    from inspect import signature

    from timm.models import build_model_with_cfg

    taken = {*signature(timm.create_model).parameters, *signature(build_model_with_cfg).parameters}
    assert taken <= NOT_ARGUMENTS


def test_a_description_has_the_maps_that_timm_has():
    sheet = cvt.describe("timm/test_resnet", 64)
    assert sheet.grids == ((32, 32), (16, 16), (8, 8), (4, 4), (2, 2))
    assert len(sheet.widths) == 5
    assert sheet.macs == sum(sheet.macs_by_part.values())
    assert sheet.record is None
    vit = cvt.describe(RESNET.replace("resnet", "vit"))
    assert vit.record.source == "timm/test_vit.r160_in1k"
    assert vit.grids == ((10, 10),)
    assert min(vit.macs_by_part.values()) > 0
    tiny = row_of("timm/vit_tiny_patch16_224").change(depth=1)
    with pytest.raises(UserError, match=r"takes no image of 64x64 pixels .* made for 224x224"):
        cvt.describe("timm/vit_tiny_patch16_224", 64, tiny)
    assert cvt.describe("timm/vit_tiny_patch16_224", 64, tiny.change(img_size=64)).macs


def test_lists_of_timms(capsys):
    assert "timm/resnet18" in cvt.list_models("timm/resnet*")
    assert "timm/resnet18.a1_in1k" in cvt.list_models("timm/resnet18*", pretrained=True)
    assert not cvt.list_models("timm/cvt_*")
    assert main(["models", "timm/test_resnet*"]) == 0
    said = capsys.readouterr().out
    assert "timm/test_resnet" in said
    assert "r160_in1k" in said
    assert main(["models", "timm/resnte18"]) == 2
    assert "Did you mean 'timm/resnet18'" in capsys.readouterr().err
    assert main(["show", RESNET]) == 0
    said = capsys.readouterr().out
    assert "Channels" in said
    assert "Licence: " in said
