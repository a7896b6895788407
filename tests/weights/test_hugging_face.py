"""Against transformers itself: names, folders and logits, both ways."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import cvt
from cvt import Backbone
from cvt.errors import UserError
from cvt.parts.mlp import QuickGELU
from cvt.systems.cvt import PAPER_ROWS, ROWS
from cvt.weights.checkpoint import read_safetensors
from cvt.weights.fit import load_strict
from cvt.weights.hugging_face import (
    config_of_record,
    read_hugging_face,
    spec_of_config,
    write_hugging_face,
)
from cvt.weights.layouts import to_hugging_face, to_ours
from cvt.weights.pickles import write_pickle
from cvt.weights.record import Record
from cvt.weights.source import open_weights
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
    load_strict(ours, to_ours(hugging_face.state_dict()), source="transformers")
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
    load_strict(ours, to_ours(hugging_face.state_dict()), source="transformers")
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
    assert same(state_dict, to_ours(hugging_face.state_dict()))
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


def answers(folder):
    """What transformers' pipeline says of a picture, and what we say, by label."""
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8))
    classify = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    theirs = {each["label"]: each["score"] for each in classify(picture, top_k=10)}
    (prediction,) = cvt.Predictor(folder)(picture, top_k=10)
    return theirs, {label.name: label.probability for label in prediction.labels}


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (["defect"], None),
        (["a", "b", "c"], "multi_label_classification"),
        (["a", "b", "c"], "single_label_classification"),
        (["a", "b", "c"], None),
    ],
)
def test_probabilities_are_what_the_authors_meant(tmp_path, labels, problem_type):
    named = dict(enumerate(labels))
    config = {**TINY, "num_labels": len(labels), "id2label": named, "problem_type": problem_type}
    model = theirs(**config)
    with torch.no_grad():  # so small that GELU's other form makes little difference
        model.classifier.weight.mul_(1e-3)
        model.classifier.bias.copy_(torch.tensor([-3.0, 3.0, 2.0])[: len(labels)])
    model.save_pretrained(tmp_path)
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)
    processor.save_pretrained(tmp_path)
    expected, got = answers(tmp_path)
    assert got.keys() == expected.keys() == set(labels)
    assert got == pytest.approx(expected, abs=0.02)
    _, record = read_hugging_face(tmp_path)
    assert record.multi_label == (len(labels) == 1 or problem_type == "multi_label_classification")


def test_several_labels_survive_the_way_there_and_back(tmp_path, tiny_model, tiny_record):
    record = replace(tiny_record, multi_label=True)
    write_hugging_face(tmp_path, tiny_model.state_dict(), record)
    assert read_hugging_face(tmp_path)[1].multi_label
    assert transformers.CvtConfig.from_pretrained(tmp_path).problem_type.startswith("multi_label")


@pytest.fixture
def written(tmp_path, tiny_model, tiny_record):
    """A folder, and a function that changes its config."""
    write_hugging_face(tmp_path, tiny_model.state_dict(), tiny_record)
    path = tmp_path / "config.json"

    def change(**changes):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return tmp_path

    return change


def test_id2label_as_a_list_is_followed(written):
    assert read_hugging_face(written(id2label=list("abcde")))[1].class_names == tuple("abcde")
    assert read_hugging_face(written(id2label=None))[1].class_names is None
    numbers = {str(index): index * 10 for index in range(5)}
    assert read_hugging_face(written(id2label=numbers))[1].class_names[4] == "40"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id2label": ["a", "b"]}, "Got id2label with 2 labels .*outputs 0, 1; expected one for"),
        ({"id2label": {str(i): "x" for i in range(1, 6)}}, r"outputs 1, 2, \.\.\., 5; expected"),
        ({"id2label": {"a": "x"}}, "for the outputs a; expected"),
        ({"id2label": {"0": ["x"]}}, "for id2label in config.json"),
        ({"id2label": 3}, "Got 3 for id2label"),
        ({"id2label": {str(i): "x" * 2000 for i in range(5)}}, "Got 2,000 letters"),
        ({"num_labels": 7}, "Got num_labels 7"),
        ({"problem_type": "regression"}, "Got problem_type 'regression'"),
        ({"problem_type": 3}, "Got 3 for problem_type"),
        ({"function_to_apply": "sigmoid"}, "Got function_to_apply 'sigmoid'"),
        ({"quantization_config": {"bits": 8}}, "Got quantization_config"),
        ({"auto_map": {"AutoModel": "mine.Model"}}, "Got auto_map"),
        ({"embed_dim": 3}, "Got 3 for embed_dim in config.json, expected a list"),
        ({"embed_dim": None}, "Got None for embed_dim"),
        ({"depth": [1, 2, 10**6]}, "expected a number from 0 to 512"),
        ({"qkv_projection_method": [["dw_bn"]]}, "for qkv_projection_method"),
        ({"padding_q": 3}, "Got 3 for padding_q"),
        ({"num_channels": "x"}, "Got 'x' for num_channels"),
        ({"num_channels": 1}, "expected one number for each of the 1 channels"),
        ({"model_type": ["cvt"]}, r"Got model_type \['cvt'\]"),
    ],
)
def test_a_value_that_does_not_fit_is_a_sentence(written, change, says):
    with pytest.raises(UserError, match=says):
        open_weights(written(**change))


def test_deep_and_huge_configs_are_sentences(written, tmp_path):
    written()
    for name in ("config.json", "preprocessor_config.json"):
        before = (tmp_path / name).read_text()
        for text in ("[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\xff", "null"):
            (tmp_path / name).write_text(text)
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                read_hugging_face(tmp_path)
        (tmp_path / name).write_text(before)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_are_put_together(tmp_path, same, suffix):
    model = theirs(**TINY)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    if suffix == "bin":
        for file in tmp_path.glob("*.safetensors"):
            write_pickle(file.with_suffix(".bin"), read_safetensors(file)[0])
            file.unlink()
        text = index.read_text().replace(".safetensors", ".bin")
        index.unlink()
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(text)
    for source in (tmp_path, index):
        assert same(open_weights(source)[0], to_ours(model.state_dict()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {k: f"../{v}" for k, v in m.items()}, r"Got the file '\.\./.*beside it"),
        (lambda m: dict.fromkeys(m, "/etc/passwd"), "Got the file '/etc/passwd'"),
        (lambda m: dict.fromkeys(m, ".."), r"Got the file '\.\.'"),
        (lambda m: dict.fromkeys(m, "model.onnx"), "expected the name of a .safetensors file"),
        (lambda m: dict.fromkeys(m, "none.safetensors"), "There is no file .*none.safetensors"),
        (lambda m: {**m, "more": next(iter(m.values()))}, "Got .* tensors in .*that .* lists"),
        (lambda m: dict(list(m.items())[1:]), "tensors in"),
        (lambda _: {}, "Got 0 items for weight_map"),
        (lambda _: None, "Got None for weight_map"),
        (lambda m: {k: [v] for k, v in m.items()}, "for weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_a_sentence(tmp_path, change, says):
    theirs(**TINY).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": change(content["weight_map"])}))
    with pytest.raises(UserError, match=says):
        open_weights(tmp_path)
