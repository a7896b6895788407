"""`cvt eval --benchmark`, and the plots that `cvt eval` leaves behind."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import cvt
from cvt.evaluation import imagenet_synsets, subset_synsets
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import Preprocessing, Record
from randomise import randomise
from shades import write_shades


@pytest.fixture(scope="module")
def of_imagenet(tmp_path_factory):
    """A tiny network with a thousand nameless outputs."""
    spec = cvt.create_model("cvt_nano_32", num_classes=1000, depth=1, embed_dim=8, num_heads=1).spec
    record = Record(
        model="cvt_nano_32", spec=spec, preprocessing=Preprocessing(input_size=(3, 8, 8))
    )
    path = tmp_path_factory.mktemp("imagenet") / "tiny.safetensors"
    save_checkpoint(path, randomise(cvt.Backbone(spec)).state_dict(), record)
    return path


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((12, 12), 80).convert("RGB").save(path)


@pytest.fixture
def val(tmp_path):
    for number in (1, 2, 3, 4):
        draw(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    return tmp_path / "val"


def test_real_labels(run, of_imagenet, val, tmp_path):
    flags = ("--benchmark", "real", "--out", tmp_path / "out")
    code, out, err = run("eval", of_imagenet, val, *flags)
    assert code == 0
    assert "3 images (1 without a label left out): ReaL top-1 " in out
    assert f"Reliability diagram: {tmp_path}/out/reliability.png" in out
    assert err.endswith("with ReaL labels: 3 of 46,837 images.\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reliability.png"]
    (val / "ILSVRC2012_val_00000005.JPEG").touch()
    code, out, err = run("eval", of_imagenet, val, *flags)
    assert code == 1
    assert "skipped: " in err
    assert "1 of 4 images skipped." in err
    code, out, err = run("eval", of_imagenet, val, *flags, "--json")
    figures = json.loads(out)
    assert (code, err, figures["benchmark"], figures["num_expected"]) == (1, "", "real", 46_837)
    assert figures["reliability_picture"] == str(tmp_path / "out" / "reliability-3.png")


def test_two_hundred_classes(run, of_imagenet, tmp_path):
    for synset in subset_synsets("a"):
        draw(tmp_path / "a" / synset / "x.jpg")
    plots = [tmp_path / "confusion.png", tmp_path / "sure.png"]
    flags = ("--confusion", plots[0], "--reliability", plots[1])
    code, out, err = run("eval", of_imagenet, tmp_path / "a", "--benchmark", "a", *flags)
    assert (code, out.count("\n")) == (0, 3)
    assert out.startswith("200 images among 200 classes: top-1 ")
    assert "this is not all of ImageNet-A: 200 of 7,500 images" in err
    for path in plots:
        with Image.open(path) as image:
            assert image.width > 300


def test_corruptions(run, of_imagenet, tmp_path, monkeypatch):
    draw(tmp_path / "x.jpg")
    for synset in imagenet_synsets():
        (tmp_path / "c" / "fog" / "1" / synset).mkdir(parents=True)
        os.link(tmp_path / "x.jpg", tmp_path / "c" / "fog" / "1" / synset / "x.jpg")
    for severity in "2345":
        (tmp_path / "c" / "fog" / severity).symlink_to("1")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("eval", of_imagenet, "c", "--benchmark", "c")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["Corruption", "fog"]
    assert "no mCE, which takes all 15 corruptions (1 are there)" in out
    assert "5,000 of 3,750,000 images" in err
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture
def six(tmp_path):
    """An image of each class of the checkpoint."""
    for name in ("ant", "bee", "cat", "dog", "eel", "fox"):
        draw(tmp_path / "data" / name / "x.png")
    return tmp_path / "data"


@pytest.fixture
def own(checkpoint, tmp_path):
    """The checkpoint in a folder of its own."""
    (tmp_path / "own").mkdir()
    return shutil.copy(checkpoint, tmp_path / "own" / "tiny.safetensors")


def test_plots_lie_beside_the_checkpoint_and_replace_none(run, own, six, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "own" / "reliability.png").write_text("older")
    for tail in ("-2", "-3"):
        code, out, err = run("eval", own, six, "--split", "all")
        assert (code, err) == (0, "")
        assert f"Confusion matrix: {tmp_path}/own/confusion{tail}.png\n" in out
        assert f"Reliability diagram: {tmp_path}/own/reliability{tail}.png\n" in out
    assert (tmp_path / "own" / "reliability.png").read_text() == "older"
    assert len(list((tmp_path / "own").iterdir())) == 6
    assert not list((tmp_path / "here").iterdir())


def test_what_has_no_place_of_its_own_is_drawn_where_out_says(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ten = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for name in ten:
        draw(tmp_path / "ten" / name / "x.png")
    command = ("eval", "cvt_nano_32.cifar10", "ten", "--split", "all")
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert "No plots: name a folder for them with --out." in out
    assert not list(tmp_path.glob("*.png"))
    code, out, _ = run(
        "eval", "cvt_nano_32.cifar10", "ten", "--split", "all", "--out", "new/out", "--json"
    )
    assert json.loads(out)["confusion_picture"] == "new/out/confusion.png"
    assert sorted(each.name for each in (tmp_path / "new" / "out").iterdir()) == (
        ["confusion.png", "reliability.png"]
    )


def test_a_folder_that_cannot_be_written_is_replaced_by_the_working_folder(
    run, own, six, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    real = Path.open

    def read_only(path, mode="r", **more):
        if mode == "x" and path.parent.name == "own":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, mode, **more)

    monkeypatch.setattr(Path, "open", read_only)
    code, out, err = run("eval", own, six, "--split", "all")
    assert code == 0
    assert f"Cannot write {tmp_path}/own: Permission denied." in err
    assert "in the working folder instead" in err
    assert "Confusion matrix: confusion.png" in out


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
@pytest.mark.parametrize(
    "where", [("--out", "/proc/none"), ("--confusion", "/proc/none/c.png"),
              ("--confusion", "c.xyz"), ("--reliability", "/proc/none/r.png")],
)  # fmt: skip
def test_figures_are_printed_whatever_becomes_of_the_plots(
    run, own, six, tmp_path, monkeypatch, where, json_flag
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("eval", own, six, "--split", "all", *where, *json_flag)
    assert code == 1
    assert "Traceback" not in err
    assert err.startswith("cvt: There ")
    assert ('"top1"' if json_flag else "top-1 ") in out


def test_a_drawing_library_that_fails_or_is_stopped_costs_no_figure(run, own, six, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    code, out, err = run("eval", own, six, "--split", "all")
    assert code == 1
    assert "top-1 " in out
    assert err.count("no font") == 2
    assert [each.name for each in Path(own).parent.iterdir()] == ["tiny.safetensors"]

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", pressed)
    code, out, _ = run("eval", own, six, "--split", "all", "--json")
    assert code == 130
    assert "top1" in json.loads(out)
    assert [each.name for each in Path(own).parent.iterdir()] == ["tiny.safetensors"]


def test_reliability_is_drawn_beside_a_confusion_that_has_a_name(run, checkpoint, six, tmp_path):
    flags = ("--split", "all", "--confusion", tmp_path / "out" / "c.png", "--json")
    code, out, _ = run("eval", checkpoint, six, *flags)
    figures = json.loads(out)
    assert code == 0
    assert sum(each["num_images"] for each in figures["reliability"]) == 6
    assert figures["reliability_picture"] == str(tmp_path / "out" / "reliability.png")
    assert (tmp_path / "out" / "reliability.png").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--benchmark", "v2"), ("with 6 outputs", "1,000 classes of ImageNet")),
        (("--benchmark", "v3"), ("v3", "v2")),
        (("--benchmark", "v2", "--split", "val"), ("split", "folder alone")),
    ],
)
def test_mistakes_of_an_evaluation(run, checkpoint, val, flags, words):
    code, out, err = run("eval", checkpoint, val, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words)


@pytest.mark.parametrize("benchmark", ["val", "v2", "a", "r", "c"])
def test_another_folder_than_the_benchmarks_is_a_mistake(run, of_imagenet, val, benchmark):
    code, out, err = run("eval", of_imagenet, val, "--benchmark", benchmark)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "holds no folders, expected ImageNet" in err


def test_outputs_that_are_no_numbers_are_not_measured(run, without_numbers, six):
    code, out, err = run("eval", without_numbers, six, "--split", "all")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no finite numbers for 6 of 6 images" in err


@pytest.fixture
def images(tmp_path):
    return write_shades(tmp_path / "data")


def test_bright_and_dark_are_told_apart_without_training(run, checkpoint, images):
    code, out, err = run("probe", checkpoint, images)
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()]
    assert table[0][:3] == ["Method", "Split", "Images"]
    assert table[1] == ["k-NN", "val", "2", "100.00", "-", "k", "18"]
    assert table[2][:5] == ["linear", "val", "2", "100.00", "-"]
    assert "128 frozen features, learned from 18 of 20 images; val is cut out of the" in out


def test_json_and_skipped_images(run, checkpoint, images):
    (images / "dark" / "zero.png").touch()
    flags = ("--method", "knn", "-k", "3")
    code, out, _ = run("probe", checkpoint, images, *flags, "--json")
    figures = json.loads(out)
    (score,) = figures["scores"]
    assert (code, score["method"], score["setting"]) == (1, "knn", {"k": 3})
    assert len(figures["bad"]) == 1
    assert "zero.png is empty" in figures["bad"][0]
    code, _, err = run("probe", checkpoint, images, *flags)
    assert code == 1
    assert "1 of 21 images skipped." in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("-k", "0"), "Got k 0, expected 1 or more"), (("--method", "svm"), "svm")],
)
def test_mistakes_of_a_probe(run, checkpoint, images, flags, words):
    code, out, err = run("probe", checkpoint, images, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
