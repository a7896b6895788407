"""Against transformers itself: names, folders and logits, both ways."""

import json
from dataclasses import replace

import pytest
import torch

from cvt.errors import UserError
from cvt.parts.backbone import Backbone
from cvt.parts.mlp import QuickGELU
from cvt.systems.cvt import PAPER_ROWS, ROWS
from cvt.weights.hugging_face import (
    config_of_record,
    read_hugging_face,
    spec_of_config,
    write_hugging_face,
)
from cvt.weights.layouts import from_hugging_face, to_hugging_face
from cvt.weights.pickles import write_pickle
from cvt.weights.record import Record
from cvt.weights.strict import load_strict
from randomise import randomise

transformers = pytest.importorskip("transformers")

TINY = {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "num_labels": 5}


def theirs(**config):
    model = transformers.CvtForImageClassification(transformers.CvtConfig(**config))
    return randomise(model, seed=1).eval()


def swap_activation(model):
    for layer in (each for stage in model.cvt.encoder.stages for each in stage.layers):
        layer.intermediate.activation = QuickGELU()
    return model


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["tiny", "cvt_13"])
def test_strict_both_ways_and_equal_logits_and_maps(name):
    config = TINY if name == "tiny" else {"num_labels": 1000}
    hugging_face = theirs(**config)
    spec = spec_of_config(hugging_face.config.to_dict()).change(num_classes=config["num_labels"])
    ours = Backbone(spec).eval()
    load_strict(ours, from_hugging_face(hugging_face.state_dict()), source="transformers")
    back = theirs(**config)
    back.load_state_dict(to_hugging_face(ours.state_dict()), strict=True)
    swap_activation(back)
    image = torch.randn(2, 3, 57, 96)
    with torch.inference_mode():
        expected = back(image, output_hidden_states=True)
        tokens, fmaps = ours.forward_intermediates(image)
        close(ours.forward_head(tokens), expected.logits)
    for got, wanted in zip(fmaps, expected.hidden_states, strict=True):
        close(got, wanted)


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_their_names_and_shapes_are_ours_for_every_published_row(name):
    record = Record(model=name, spec=ROWS[name])
    config = transformers.CvtConfig.from_dict(config_of_record(record))
    with torch.device("meta"):
        expected = transformers.CvtForImageClassification(config).state_dict()
        got = to_hugging_face(Backbone(record.spec).state_dict())
    assert {key: t.shape for key, t in got.items()} == {key: t.shape for key, t in expected.items()}


def test_with_gelu_the_port_itself_is_matched():
    hugging_face = theirs(**TINY)
    spec = spec_of_config(hugging_face.config.to_dict()).change(num_classes=5, act_layer="gelu")
    ours = Backbone(spec).eval()
    load_strict(ours, from_hugging_face(hugging_face.state_dict()), source="transformers")
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        close(ours(image), hugging_face(image).logits)


def test_the_default_config_is_cvt_13():
    spec = spec_of_config(transformers.CvtConfig().to_dict())
    assert spec == ROWS["cvt_13"]
    assert spec_of_config({"model_type": "cvt"}) == spec


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_a_folder_of_theirs_is_read(tmp_path, same, pickled):
    hugging_face = theirs(**TINY, num_channels=1)
    hugging_face.config.id2label = dict(enumerate("abcde"))
    hugging_face.save_pretrained(tmp_path)
    if pickled:
        (tmp_path / "model.safetensors").unlink()
        write_pickle(tmp_path / "pytorch_model.bin", hugging_face.state_dict())
    state_dict, record = read_hugging_face(tmp_path)
    assert same(state_dict, from_hugging_face(hugging_face.state_dict()))
    assert record.class_names == tuple("abcde")
    assert (record.model, record.spec.num_classes, record.spec.in_chans) == ("cvt_13", 5, 1)
    load_strict(Backbone(record.spec), state_dict, source="x")


def test_a_folder_of_ours_is_read_by_them_and_by_us(tmp_path, tiny_model, tiny_record, same):
    notes = write_hugging_face(tmp_path, tiny_model.state_dict(), tiny_record)
    assert any("GELU" in note for note in notes)
    hugging_face = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert isinstance(hugging_face, transformers.CvtForImageClassification)
    assert hugging_face.config.id2label == dict(enumerate(tiny_record.class_names))
    image = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        close(tiny_model(image), swap_activation(hugging_face)(image).logits)
    state_dict, record = read_hugging_face(tmp_path)
    assert same(state_dict, tiny_model.state_dict())
    assert record.spec == tiny_record.spec
    assert record.preprocessing == tiny_record.preprocessing
    assert record.class_names == tiny_record.class_names


def test_their_image_processor_reads_ours(tmp_path, tiny_model, tiny_record):
    write_hugging_face(tmp_path, tiny_model.state_dict(), tiny_record)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = torch.randint(0, 256, (3, 80, 100), dtype=torch.uint8)
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    assert processor.crop_pct == 0.9


def test_gelu_needs_no_note_and_squash_gets_one(tmp_path, make_model, tiny_record):
    spec = tiny_record.spec.change(act_layer="gelu")
    squash = replace(tiny_record.preprocessing, crop_mode="squash")
    record = replace(tiny_record, spec=spec, preprocessing=squash)
    notes = write_hugging_face(tmp_path, make_model(spec).state_dict(), record)
    assert len(notes) == 1
    assert "preprocessor_config.json was not written" in notes[0]
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_a_bare_cvt_model_says_what_is_missing(tmp_path):
    transformers.CvtModel(transformers.CvtConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks norm\.weight and norm\.bias, the final norm"):
        read_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "vit"}, "Got model_type 'vit'"),
        ({"depth": [1, 2]}, "expected a list with one value for each of the 3 stages"),
        ({"num_heads": 3}, "expected a list"),
        ({"qkv_projection_method": ["dw_bn", "avg", "dw_bn"]}, "qkv_projection_method"),
        ({"padding_kv": [0, 1, 1]}, "padding_kv"),
        ({"cls_token": [False, False, False]}, "class token"),
        ({"num_heads": [1, 3, 5]}, "num_heads=5"),
    ],
)
def test_a_config_that_transformers_cannot_compute_is_refused(change, says):
    config = {**transformers.CvtConfig().to_dict(), **change}
    with pytest.raises(UserError, match=says):
        spec_of_config(config)


def test_broken_folders_are_sentences(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*config\.json"):
        read_hugging_face(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        read_hugging_face(tmp_path)
    config.write_text("[]")
    with pytest.raises(UserError, match="expected an object"):
        read_hugging_face(tmp_path)
    config.write_text(json.dumps({"model_type": "cvt"}))
    with pytest.raises(UserError, match="There are no weights"):
        read_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="truncated"):
        read_hugging_face(tmp_path)
