"""Every system's weights: ours and other people's files, there and back, at other sizes too."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import cvt
from cvt import convert
from cvt.errors import UserError
from cvt.systems.catalog import ROWS, SYSTEMS, make_network
from cvt.weights.fit import adapt, recognise_variant
from cvt.weights.layouts import identify
from cvt.weights.pickles import unwrap
from cvt.weights.record import preprocessing_of_row
from cvt.weights.source import names_weights, open_weights
from randomise import randomise

IMAGENET_MEAN = (0.485, 0.456, 0.406)

# Rows that are quick to run, and changes that make the larger ones so.
SMALL = {
    "vit_nano_32": {"depth": 2},
    "deit_nano_32": {"depth": 2},
    "cpvt_nano_32": {"depth": 2},
    "tnt_nano_32": {"depth": 2},
    "t2t_nano_32": {"depth": (0, 0, 2)},
    "pvt_nano_32": {},
    "twins_pcpvt_small": {
        "embed_dim": (8, 16, 24, 32),
        "num_heads": 2,
        "depth": 1,
        "img_size": 64,
        "num_classes": 10,
    },
}


def small(name, **changes):
    return randomise(cvt.create_model(name, **{**SMALL[name], **changes})).eval()


def picture(model, seed=0, size=None):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, model.in_chans, *(size or model.spec.img_size), generator=generator)


def shapes_on_meta(spec):
    with torch.device("meta"):
        return make_network(spec).state_dict()


@pytest.fixture(params=SMALL)
def saved(request, tmp_path):
    """A randomised network of a system, and our own file of it."""
    model = small(request.param)
    cvt.save_pretrained(model, tmp_path / "folder")
    path = tmp_path / "m.safetensors"
    assert convert(tmp_path / "folder", path) == ""
    return model, path


@torch.no_grad()
def test_our_own_file_rebuilds_the_model(saved, same):
    model, path = saved
    loaded = cvt.load(path)
    assert loaded.spec == model.spec
    assert same(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded(picture(model)), model(picture(model)))


@torch.no_grad()
def test_timm_builds_it_from_the_folder_and_we_do(saved, same):
    model, path = saved
    folder = path.parent / "folder"
    rebuilt = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(rebuilt(picture(model)), model(picture(model)))
    fresh = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert fresh.num_classes == 3
    without_head = {n: t for n, t in model.state_dict().items() if not n.startswith("head")}
    got = {n: t for n, t in fresh.state_dict().items() if not n.startswith("head")}
    assert same(got, without_head)
    assert same(cvt.load(folder).state_dict(), model.state_dict())


@torch.no_grad()
def test_another_number_of_classes_gets_fresh_classifiers(saved):
    model, path = saved
    loaded = cvt.load(path, num_classes=7)
    image = picture(model)
    assert loaded(image).shape == (2, 7)
    assert torch.equal(loaded.forward_features(image), model.forward_features(image))
    assert cvt.load(path, num_classes=0)(image).shape == (2, model.num_features)


@torch.no_grad()
def test_another_image_size_computes_what_the_model_does_there(saved):
    """Learned and frozen tables are interpolated, bilinearly where the spec says so."""
    model, path = saved
    height, width = (2 * side for side in model.spec.img_size)
    size = (height, width * 3 // 4)
    loaded = cvt.load(path, img_size=size)
    assert loaded.spec.img_size == size
    assert torch.equal(loaded(picture(loaded)), model(picture(loaded)))


@torch.no_grad()
def test_grey_images_are_seen_as_three_equal_channels_were(saved):
    model, path = saved
    if model.spec.to_dict().get("stages", [{}])[0].get("embed", "conv") != "conv":
        with pytest.raises(UserError, match="Got in_chans=1 for weights of 3 channels"):
            cvt.load(path, in_chans=1)
        return
    loaded = cvt.load(path, in_chans=1)
    grey = picture(loaded)
    # The three kernels are summed first: float32 rounding of another order.
    expected = model(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(loaded(grey), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("to", ["m.pth", "hf"])
def test_the_layouts_of_cvt_cannot_express_them(saved, to):
    _, path = saved
    with pytest.raises(UserError, match=r"cannot express this model: .*keep it as \.safetensors"):
        convert(path, path.parent / to)
    assert not (path.parent / to).exists()


@torch.no_grad()
def test_a_baseline_goes_there_and_back(tmp_path, same):
    model = randomise(cvt.create_model("resnet18", num_classes=5)).eval()
    cvt.save_pretrained(model, tmp_path / "folder")
    assert same(cvt.load(tmp_path / "folder").state_dict(), model.state_dict())
    rebuilt = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert same(rebuilt.state_dict(), model.state_dict())
    loaded = cvt.load(tmp_path / "folder", num_classes=3, in_chans=1, img_size=64)
    assert loaded(torch.randn(1, 1, 64, 64)).shape == (1, 3)
    assert same(loaded.layer1.state_dict(), model.layer1.state_dict())
    model.reset_classifier(4)
    cvt.save_pretrained(model, tmp_path / "fewer")
    assert cvt.load(tmp_path / "fewer")(torch.randn(1, 3, 64, 64)).shape == (1, 4)
    model.reset_classifier(5)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    _, record = open_weights(tmp_path / "bare.pth")
    assert (record.model, record.spec.num_classes) == ("resnet18", 5)


NAMES = [name for name in ROWS if not name.startswith(("efficientnet", "resnet"))]
ALIKE = {
    "deit_tiny_patch16_224": "vit_tiny_patch16_224",
    "deit_small_patch16_224": "vit_small_patch16_224",
    "deit_base_patch16_224": "vit_base_patch16_224",
    "deit_base_patch16_384": "vit_base_patch16_384",
    "t2t_vit_14_resnext": "t2t_vit_14",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_recognised_among_all(name):
    """By its file's name, or the first of those that are alike, with its own ends."""
    spec = ROWS[name].change(num_classes=7)
    tensors = shapes_on_meta(spec)
    expected = ALIKE.get(name, name)
    got, found = recognise_variant(tensors, source="x")
    assert got == expected
    assert found == ROWS[expected].change(num_classes=7)
    dashed = f"81.5_{name.upper().replace('_', '-')}.pth.tar"
    assert recognise_variant(tensors, source="x", file_name=dashed) == (name, spec)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 96),
        ("pvt_tiny", 96),
        ("tnt_s_patch16_224", 96),
        ("t2t_vit_7", 96),
        ("deit_tiny_distilled_patch16_224", 384),
    ],
)
def test_the_image_size_and_channels_are_read_off_the_tensors(name, size):
    spec = ROWS[name].change(img_size=size, in_chans=1, num_classes=0)
    assert recognise_variant(shapes_on_meta(spec), source="x") == (name, spec)


def test_a_table_that_no_square_image_has_is_shown_as_the_difference():
    tensors = shapes_on_meta(ROWS["vit_tiny_patch16_224"].change(img_size=(224, 96)))
    with pytest.raises(UserError, match=r"~ stages\.0\.pos_embed\.table 1x85x192"):
        recognise_variant(tensors, source="x")


def test_resolutions_are_told_apart_by_the_table():
    tensors = shapes_on_meta(ROWS["vit_base_patch16_384"])
    assert recognise_variant(tensors, source="x")[0] == "vit_base_patch16_384"
    name, spec = recognise_variant(tensors, source="x", file_name="vit_base_patch16_224_ft.pth")
    assert (name, spec.img_size) == ("vit_base_patch16_224", (384, 384))


def test_no_known_row_is_a_sentence():
    spec = ROWS["tnt_s_patch16_224"].change(depth=3)
    with pytest.raises(UserError, match=r"x is none of the \d+ models .*got \d+ tensors"):
        recognise_variant(shapes_on_meta(spec), source="x")


THEIRS = {
    "vit_tiny_patch16_224": "ViT",
    "deit_tiny_patch16_224": "DeiT",
    "deit_tiny_distilled_patch16_224": "DeiT",
    "tnt_s_patch16_224": "TNT",
    "twins_pcpvt_small": "Twins",
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "tnt_s_patch16_224"])
def test_timm_s_checkpoint_loads_bare_and_as_its_folder_with_equal_logits(tmp_path, name):
    theirs = randomise(timm.create_model(name, num_classes=6)).eval()
    system = next(each for each in SYSTEMS if each.name == THEIRS[name])
    torch.save({"model": theirs.state_dict()}, tmp_path / f"{name}-a1b2c3.pth")
    timm.models.save_for_hf(theirs, tmp_path / "folder", safe_serialization=True)
    image = torch.randn(1, 3, 224, 224)
    expected = theirs(image)
    scale = max(1.0, float(expected.abs().max()))
    for source in (tmp_path / f"{name}-a1b2c3.pth", tmp_path / "folder"):
        loaded = cvt.load(source)
        assert (loaded.record.model, loaded.num_classes) == (name, 6)
        torch.testing.assert_close(loaded(image), expected, atol=2e-5 * scale, rtol=0)
    bare = open_weights(tmp_path / f"{name}-a1b2c3.pth")[1]
    assert bare.preprocessing == preprocessing_of_row(name)
    assert bare.preprocessing.mean == system.mean
    assert bare.licence == system.licence


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_alike_networks_get_the_preprocessing_of_the_named_one(tmp_path, name):
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=6).state_dict()
    tensors = {each: torch.zeros(tensor.shape) for each, tensor in theirs.items()}
    save_file(tensors, tmp_path / f"{name}.safetensors")
    _, record = open_weights(tmp_path / f"{name}.safetensors")
    assert record.model == name
    assert record.preprocessing.mean == (IMAGENET_MEAN if "deit" in name else (0.5, 0.5, 0.5))
    save_file(tensors, tmp_path / "mine.safetensors")
    assert open_weights(tmp_path / "mine.safetensors")[1].model == "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", THEIRS)
def test_a_layout_leaves_its_own_systems(name):
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    wrapped = {f"module.{each}": tensor for each, tensor in theirs.items()}
    ours, systems = identify(wrapped, source="x")
    assert THEIRS[name] in [system.name for system in systems]
    assert "CvT" not in [system.name for system in systems]
    expected = shapes_on_meta(ROWS[name])
    assert {each: t.shape for each, t in ours.items()} == {
        each: t.shape for each, t in expected.items()
    }


def test_averaged_weights_come_before_the_last_ones():
    last, averaged = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    content = {"state_dict": last, "state_dict_ema": averaged, "epoch": 3}
    assert unwrap(content)["a"] == 1


@pytest.mark.parametrize("file", ["81.5_T2T_ViT_14.pth.tar", "m.pth", "m.safetensors"])
def test_weights_by_their_suffix(tmp_path, file):
    (tmp_path / file).write_bytes(b"")
    (tmp_path / "shard.tar").write_bytes(b"")
    assert names_weights(str(tmp_path / file))
    assert not names_weights(str(tmp_path / "shard.tar"))


def test_a_distilled_checkpoint_with_another_head_gets_both_of_the_model():
    tensors = small("deit_nano_32").state_dict()
    model = small("deit_nano_32", num_classes=4)
    adapted = adapt(tensors, model)
    for name in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
        assert torch.equal(adapted[name], model.state_dict()[name])


PVT_CONFIG = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 1, 2, 1],
    "num_labels": 5,
}


@pytest.fixture
def pvt_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.PvtConfig(**PVT_CONFIG, image_size=64)
    theirs = randomise(transformers.PvtForImageClassification(config)).eval()
    theirs.config.id2label = dict(enumerate("abcde"))
    theirs.save_pretrained(tmp_path / "pvt")
    return theirs, tmp_path / "pvt"


@torch.no_grad()
def test_transformers_pvt_loads_with_its_class_names_and_equal_logits(pvt_folder):
    theirs, folder = pvt_folder
    loaded = cvt.load(folder)
    assert loaded.record.class_names == tuple("abcde")
    assert loaded.record.licence == "Apache-2.0 (whai362/PVT)"
    image = torch.randn(2, 3, 64, 64)
    expected = theirs(image).logits
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(loaded(image), expected, atol=2e-5 * scale, rtol=0)
    processor = {"size": {"height": 64, "width": 64}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    preprocessing = cvt.load(folder / "model.safetensors").record.preprocessing
    assert (preprocessing.input_size, preprocessing.crop_mode) == ((3, 64, 64), "squash")
    assert preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "vit"}, "Got model_type 'vit' .*expected 'cvt' or 'pvt'"),
        ({"strides": [4, 2, 2, 1]}, "expected the same"),
        ({"depths": 3}, "expected a list"),
        ({"num_attention_heads": [1, 2]}, "one value for each of the 4 stages"),
        ({"hidden_act": "tanh"}, "Got 'tanh' for hidden_act"),
    ],
)
def test_a_config_that_is_not_pvt_s_is_a_sentence(pvt_folder, change, says):
    _, folder = pvt_folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=says):
        cvt.load(folder)
