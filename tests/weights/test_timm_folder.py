"""Folders that timm and transformers read, and that come back as they were."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cvt
from cvt.errors import UserError
from cvt.systems.cvt import ROWS
from cvt.weights.checkpoint import write_safetensors
from cvt.weights.layouts import to_hugging_face
from cvt.weights.record import Preprocessing, Record
from cvt.weights.timm_folder import model_args, read_timm_folder, save_pretrained

assert cvt  # importing it registers the models with timm


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_record):
    save_pretrained(tiny_model, tmp_path / "saved", tiny_record)
    return tmp_path / "saved"


def test_comes_back_as_it_was(folder, tiny_model, tiny_record, same):
    state_dict, record = read_timm_folder(folder)
    assert record == tiny_record
    assert same(state_dict, tiny_model.state_dict())


def test_timm_builds_the_same_model(folder, tiny_model, tiny_record):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        assert torch.equal(model(image), tiny_model(image))
    assert model.pretrained_cfg["crop_pct"] == 0.9
    assert tuple(model.pretrained_cfg["label_names"]) == tiny_record.class_names


def test_timm_puts_another_head_on(folder, tiny_model, same):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert model.num_classes == 3
    assert same(model.stages.state_dict(), tiny_model.stages.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"in_chans": 1},
        {"num_classes": 0},
        {"projection": ("linear", "avg", "conv"), "kv_stride": (2, 2, 1)},
        {"cls_token": False, "act_layer": "gelu", "attn_scale": "head_dim"},
        {"pos_embed": ("table", "none", "table"), "img_size": (48, 64)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_any_change_of_a_row_is_rebuilt(tmp_path, tiny_spec, make_model, changes):
    model = make_model(tiny_spec.change(**changes))
    save_pretrained(model, tmp_path, Record(model="cvt_13", spec=tiny_spec))
    rebuilt = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, model.in_chans, 48, 64)
    with torch.inference_mode():
        assert torch.equal(rebuilt(image), model(image))


@given(
    name=st.sampled_from(sorted(ROWS)),
    num_classes=st.integers(0, 20),
    kv_stride=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    depth=st.integers(1, 4),
    cls_token=st.booleans(),
)
def test_model_args_rebuild_the_spec(name, num_classes, kv_stride, depth, cls_token):
    spec = ROWS[name].change(
        num_classes=num_classes, kv_stride=kv_stride, depth=depth, cls_token=cls_token
    )
    arguments = json.loads(json.dumps(model_args(name, spec)))
    assert ROWS[name].change(**arguments) == spec


def test_an_unchanged_row_needs_no_arguments():
    assert all(model_args(name, row) == {} for name, row in ROWS.items())


def test_num_classes_is_not_in_model_args(folder):
    """There it would make transformers pass it twice."""
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 5
    assert "num_classes" not in config["model_args"]


def test_a_record_from_before_a_new_head_will_do(tmp_path, tiny_model, tiny_record):
    tiny_model.reset_classifier(2)
    save_pretrained(tiny_model, tmp_path, tiny_record)
    _, record = read_timm_folder(tmp_path)
    assert (record.spec.num_classes, record.class_names) == (2, None)


def test_a_folder_that_timm_saved_is_read(tmp_path, same):
    model = timm.create_model("cvt_nano_32", num_classes=3, depth=1)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    state_dict, record = read_timm_folder(tmp_path)
    assert same(state_dict, model.state_dict())
    assert record.spec == ROWS["cvt_nano_32"].change(num_classes=3, depth=1)


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "cvt13"}))
    with pytest.raises(UserError, match=r"Got the architecture 'cvt13'.*Did you mean 'cvt_13'"):
        read_timm_folder(tmp_path)


def test_what_is_no_change_of_its_row_is_refused(tmp_path, tiny_spec, make_model):
    two = replace(tiny_spec, stages=tiny_spec.stages[:2], global_pool="avg")
    with pytest.raises(UserError, match="Got 2 stages, expected the 3 of cvt_13"):
        save_pretrained(make_model(two), tmp_path, Record(model="cvt_13", spec=two))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="Unknown model 'mine'"):
        model_args("mine", tiny_spec)


def test_transformers_reads_it_and_classifies_a_picture(folder, tiny_model, tiny_record):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(image).logits, tiny_model(image))
    pixels = np.random.RandomState(0).randint(0, 256, (80, 100, 3), dtype=np.uint8)
    classify = transformers.pipeline("image-classification", model=str(folder))
    answers = classify(Image.fromarray(pixels), top_k=5)
    assert {answer["label"] for answer in answers} == set(tiny_record.class_names)


def test_weights_in_other_names_are_renamed(tmp_path, tiny_model, tiny_record, same):
    save_pretrained(tiny_model, tmp_path, tiny_record)
    theirs = to_hugging_face(tiny_model.state_dict())
    write_safetensors(tmp_path / "model.safetensors", theirs, {"format": "pt"})
    state_dict, record = read_timm_folder(tmp_path)
    assert same(state_dict, tiny_model.state_dict())
    assert record.spec == tiny_record.spec


def test_a_model_saves_without_a_record_too(tmp_path, folder):
    cvt.save_pretrained(cvt.load(folder), tmp_path / "again")
    assert read_timm_folder(tmp_path / "again")[1] == read_timm_folder(folder)[1]
    fresh = cvt.create_model("cvt_13.msft_in1k_384", depth=1, in_chans=1)
    cvt.save_pretrained(fresh, tmp_path / "fresh")
    record = read_timm_folder(tmp_path / "fresh")[1]
    assert record.spec == fresh.spec
    assert record.preprocessing.input_size == (1, 384, 384)
    assert record.preprocessing.crop_mode == "squash"


def test_a_model_of_no_known_row_needs_a_record(tmp_path, tiny_spec):
    with pytest.raises(UserError, match="pass a record"):
        save_pretrained(cvt.Backbone(tiny_spec), tmp_path / "saved")


def test_a_model_from_any_loop_keeps_its_labels(tmp_path, same):
    """There is no record of a new model: the names and the preprocessing come with the call."""
    model = timm.create_model("cvt_nano_32", num_classes=3)
    how = timm.data.resolve_data_config({"input_size": (3, 48, 48), "crop_pct": 0.9}, model=model)
    cvt.save_pretrained(model, tmp_path, class_names=["circle", "square", "ü"], preprocessing=how)
    state_dict, record = read_timm_folder(tmp_path)
    assert same(state_dict, model.state_dict())
    assert record.class_names == ("circle", "square", "ü")
    assert (record.preprocessing.size, record.preprocessing.crop_pct) == ((48, 48), 0.9)
    assert cvt.Predictor(tmp_path).class_names == record.class_names
    own = Preprocessing(input_size=(3, 40, 40))
    cvt.save_pretrained(cvt.load(tmp_path), tmp_path / "again", preprocessing=own)
    again = read_timm_folder(tmp_path / "again")[1]
    assert (again.class_names, again.preprocessing) == (record.class_names, own)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"class_names": ["a", "b"]}, "Got 2 class names for a model with 3 outputs"),
        ({"class_names": "abc"}, "Got class_names 'abc', expected a list"),
        ({"class_names": [1, 2, 3]}, "Got 1 for class_names"),
        ({"preprocessing": {"interpolation": "random"}}, "Got 'random' for interpolation"),
        (
            {"preprocessing": Preprocessing(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))},
            "a preprocessing of 1 channels for a model of 3",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_not_saved(tmp_path, given, says):
    model = timm.create_model("cvt_nano_32", num_classes=3, depth=1)
    with pytest.raises(UserError, match=says):
        cvt.save_pretrained(model, tmp_path / "saved", **given)
    assert not (tmp_path / "saved").exists()


def test_what_is_around_a_model_is_not_it(tmp_path):
    wrapped = torch.nn.Sequential(timm.create_model("cvt_nano_32", depth=1))
    with pytest.raises(UserError, match=r"Got a Sequential, .* give the network inside of it"):
        cvt.save_pretrained(wrapped, tmp_path)


@pytest.fixture
def timms(tmp_path):
    """A folder that timm saved, and a function that changes its config."""
    model = timm.create_model("cvt_nano_32", num_classes=3, depth=1)
    timm.models.save_for_hf(model, tmp_path, model_args={"depth": 1}, safe_serialization=True)
    path = tmp_path / "config.json"

    def change(of_cfg=None, **changes):
        config = json.loads(path.read_text())
        config["pretrained_cfg"] |= of_cfg or {}
        path.write_text(json.dumps({**config, **changes}))
        return tmp_path

    return change


def test_labels_and_pooling_of_timm_s_config_are_followed(timms):
    folder = timms(of_cfg={"label_names": ["a", "b", "c"], "license": "mit"})
    _, record = read_timm_folder(folder)
    assert (record.class_names, record.licence) == (("a", "b", "c"), "mit")
    assert record.spec.global_pool == "avg"
    folder = timms(global_pool="", model_args={"depth": 1}, label_names=["x", "y", "z"])
    _, record = read_timm_folder(folder)
    assert (record.class_names, record.spec.global_pool) == (("x", "y", "z"), "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": None}, "Got None for architecture"),
        ({"architecture": ["cvt_13"]}, "for architecture in config.json, expected text"),
        ({"num_classes": 7}, "Got a classifier of 3 outputs .*expected the 7 classes"),
        ({"num_classes": "3"}, "Got '3' for num_classes"),
        ({"num_classes": -1}, "expected a number from 0"),
        ({"global_pool": ""}, "Got global_pool '' .*and 'avg' in its model_args"),
        ({"global_pool": "max", "model_args": {"depth": 1}}, "Got 'max' for global_pool"),
        (
            {"model_args": {"depth": 1, "in_chans": 1}},
            "a first layer for 3 channels .*expected the 1",
        ),
        ({"label_names": {"a": 1}}, "Got a mapping with 1 keys for label_names"),
        ({"label_names": ["a"]}, "Got 1 class names for a model with 3"),
        ({"model_args": []}, "for model_args"),
        ({"model_args": {"depht": 1}}, "Did you mean 'depth'"),
        ({"model_args": {"depth": 10**6}}, "expected a number from 0 to 512"),
        ({"model_args": {"stages": [1]}}, "expected a list with one StageSpec"),
        ({"pretrained_cfg": None}, "Got None for pretrained_cfg"),
        ({"of_cfg": {"interpolation": "random"}}, "Got 'random' for interpolation"),
        ({"of_cfg": {"crop_mode": "border"}}, "Got 'border' for crop_mode"),
        ({"of_cfg": {"input_size": [3, 10**9, 8]}}, "expected a number from 1 to 4096"),
        ({"of_cfg": {"mean": 0.5}}, "Got 0.5 for mean"),
        ({"of_cfg": {"license": ["mit"]}}, "for licence in the record"),
    ],
)
def test_a_value_that_does_not_fit_is_a_sentence(timms, change, says):
    with pytest.raises(UserError, match=says):
        read_timm_folder(timms(**change))
