"""Runs of timm's networks: killed and gone on with, taught, fine-tuned, layer by layer."""

import signal

import pytest
import torch

import cvt
from cvt.cli.main import main
from cvt.errors import UserError
from cvt.training.loop import train
from cvt.weights.checkpoint import load_checkpoint
from processes import in_processes
from trained import Event, differences, session

# BatchNorm; dropout and drop-path; a network for one size, windows and drop-path in it.
KINDS = {
    "timm/test_resnet": {"drop_rate": 0.2},
    "timm/test_vit": {"drop_rate": 0.1, "proj_drop_rate": 0.1, "depth": 2},
    "timm/swin_tiny_patch4_window7_224": {
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
    },
}


def settings(tiny_run, out, model, **changes):
    told = {"model": model, "model_args": KINDS.get(model, {}), "image_size": 32}
    return tiny_run(out, **{**told, "accum_steps": 2, "ema_decay": 0.9, **changes})


@pytest.mark.parametrize("model", KINDS)
def test_killed_and_gone_on_with_it_is_the_same_run(model, tiny_run, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    now = {"checkpoint_minutes": 1e-6}
    killed = Event("cvt.training.loop.train_step", 5, signal.SIGKILL)
    assert session(settings(tiny_run, whole, model, **now)).result
    in_processes(1, session, settings(tiny_run, cut, model, **now), killed, dies=(0,))
    assert session({"resume": str(cut)}).result
    assert differences(whole, cut) == []
    record = load_checkpoint(cut / "last.safetensors")[1]
    assert (record.model, record.class_names) == (model, ("bright", "dark"))
    is_sized = "resnet" not in model
    assert (record.spec.img_size == (32, 32)) == is_sized
    assert record.spec.drop_path_rate == 0.5


def test_weights_of_one_are_a_start_at_another_size(tiny_run, tmp_path):
    first = train(**settings(tiny_run, tmp_path / "first", "timm/test_vit", epochs=1))
    told = tiny_run(tmp_path / "second", weights=str(first.run), image_size=48, epochs=1)
    for name in ("model", "model_args"):
        del told[name]
    told["optim"] = {**told["optim"], "layer_decay": 0.5}
    second = train(**told)
    record = load_checkpoint(second.run / "last.safetensors")[1]
    assert record.spec.img_size == (48, 48)
    assert (
        record.spec.arguments == load_checkpoint(first.run / "last.safetensors")[1].spec.arguments
    )
    assert record.preprocessing.size == (48, 48)
    assert cvt.evaluate(second.run, told["data"]).num_images == 4


def test_timms_weights_bring_their_preprocessing_and_teach(tiny_run, tmp_path, monkeypatch):
    """The weights are random ones, in the place of a download."""
    network = cvt.create_model("timm/test_resnet")
    monkeypatch.setattr("cvt.weights.source.trained_timm", lambda *_, **__: network)
    name = "timm/test_resnet.r160_in1k"
    told = tiny_run(tmp_path / "tuned", weights=name, image_size=32, epochs=1)
    for each in ("model", "model_args", "drop_path_rate"):
        del told[each]
    run = train(**told, freeze="backbone").run
    record = load_checkpoint(run / "last.safetensors")[1]
    assert record.preprocessing.mean == (0.5, 0.5, 0.5)
    assert (record.preprocessing.crop_pct, record.preprocessing.size) == (0.95, (32, 32))
    assert (record.model, record.licence) == ("timm/test_resnet", "apache-2.0")
    tuned, start = cvt.load(run).state_dict(), network.state_dict()
    assert all(torch.equal(tuned[n], start[n]) for n in start if not n.startswith("fc."))
    student = tiny_run(tmp_path / "taught", teacher=str(run), image_size=32, epochs=1)
    assert train(**student).best_epoch == 1


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"model": "timm/test_resnte"}, "Unknown model 'timm/test_resnte'. Did you mean 'timm/te"),
        ({"model": "timm/test_vit", "model_args": {"dpeth": 1}}, "Did you mean 'depth'"),
        (
            {"model": "timm/resnet50", "model_args": {"output_stride": 8}},
            "no checkpoint would know",
        ),
        (
            {"model": "timm/vit_tiny_patch16_224", "model_args": {"img_size": 64, "depth": 1}},
            "takes no image of 32x32 pixels .* made for 64x64",
        ),
        ({"model": "timm/vgg11", "drop_path_rate": 0.1}, "Unknown argument 'drop_path_rate' of"),
        ({"weights": "timm/cvt_13"}, "a network of this library"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(told, words, tiny_run, tmp_path):
    config = {**tiny_run(tmp_path / "run"), "model_args": {}, "image_size": 32, **told}
    if "drop_path_rate" not in told:
        del config["drop_path_rate"]
    if "weights" in told:
        del config["model"]
    with pytest.raises(UserError, match=words):
        train(**config)
    assert not (tmp_path / "run").exists()


def test_a_comparison_takes_them_with_their_changes(tiny_folder, tmp_path, capsys):
    names = ["timm/test_resnet+drop_path_rate=0.1", "timm/test_vit+depth=1"]
    assert main(["compare", "timm/test_resnet", "cvt_nano_32"]) == 0
    assert "timm/test_resnet" in capsys.readouterr().out
    data = ["--data", str(tiny_folder), "--batch-size", "4", "--image-size", "32"]
    budget = ["--budget", "1epochs", "--seeds", "1", "--out", str(tmp_path / "out")]
    assert main(["compare", *names, *data, *budget]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in names)
