"""What `cvt train` makes of recipes and flags, without training."""

import os

import numpy as np
import pytest
from PIL import Image

from cvt.errors import UserError
from cvt.plain import read_yaml
from cvt.training.config import USUAL


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twenty pictures of 12x12 pixels in two classes."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(10):
            pixels = random.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def recipe(tmp_path):
    """`recipe("name", "yaml text")`: a config file, returned as its path."""

    def write(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def printed(run, tmp_path_factory, monkeypatch):
    """`printed(*arguments)`: what `cvt train ... --print-config` prints, and as plain data."""
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))

    def call(*arguments):
        code, out, err = run("train", *arguments, "--device", "cpu", "--print-config")
        assert (code, err) == (0, "")
        assert os.listdir() == [], "printing writes nothing"
        return out, read_yaml(out)

    return call


def test_what_is_printed_has_what_was_derived(printed, pictures):
    flags = ("--batch-size", "8", "--optim.base-lr", "5e-4", "--updates", "5")
    _, config = printed(pictures, "--weights", "none", *flags)
    assert config["data"] == str(pictures)
    assert config["optim"]["lr"] == 5e-4 * 8 / 512
    assert config["optim"]["min_lr"] == config["optim"]["lr"] / 100
    assert (config["updates"], config["epochs"]) == (5, 3)  # 18 pictures: two batches an epoch
    assert (config["device"], config["precision"]) == ("cpu", "float32")
    assert config["model"] == "cvt_nano_32"
    assert config["optim"]["opt"] == "adamw"


@pytest.mark.parametrize(
    "flags",
    [(), ("--updates", "7"), ("--model-args.kv-stride", "1", "--augment.auto-augment", "off"),
     ("--augment.scale", "0.3", "0.9", "--out", "1e3", "--mix.loss", "bce"),
     ("--lr", "1e-3", "--weight-decay", "0.1", "--mixup", "0.2", "--cutmix", "0.5")],
)  # fmt: skip
def test_what_is_printed_is_a_config_that_prints_the_same(printed, recipe, pictures, flags):
    text, _ = printed(pictures, *flags)
    again, _ = printed("-c", recipe("again", text))
    assert again == text


def test_a_printed_config_scales_its_rate_with_another_batch(printed, recipe, pictures):
    text, before = printed(pictures, "--weights", "none", "--batch-size", "4")
    _, after = printed("-c", recipe("again", text), "--batch-size", "8")
    assert after["optim"]["lr"] == pytest.approx(2 * before["optim"]["lr"])


def test_without_the_data_the_config_stands_as_it_was_given(printed, recipe):
    text, config = printed("-c", "cvt_13_in1k", "--data-dir", "nowhere")
    assert text.startswith("# Not derived, null stands for what will be: Cannot read torch/image")
    assert config["optim"]["base_lr"] == 5e-4
    assert config["optim"]["lr"] is None
    again, _ = printed("-c", recipe("again", text))
    assert again == text


def test_without_the_weights_as_well(printed, pictures, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("cvt.weights.source._reachable", lambda: False)
    text, _ = printed(pictures, "-c", "linear_probe")
    assert text.startswith("# Not derived")
    assert "microsoft/cvt-13" in text.splitlines()[0]


def test_later_files_and_then_flags_hold(printed, recipe, pictures):
    one = recipe("one", "seed: 1\nepochs: 1\nbatch_size: 4\nmodel_args: {qkv_bias: false}")
    two = recipe("two", "seed: 2\nepochs: 2\nmodel_args: {depth: 1}")
    flags = ("--epochs", "3", "--model-args.kv-stride", "[1, 1, 2]")
    _, config = printed(pictures, "-c", one, "--config", two, *flags)
    assert [config[name] for name in ("seed", "epochs", "batch_size")] == [2, 3, 4]
    assert config["model_args"] == {"qkv_bias": False, "depth": 1, "kv_stride": [1, 1, 2]}
    _, config = printed(pictures, "-c", two, "-c", one)
    assert config["seed"] == 1


def test_a_flag_holds_even_when_it_says_the_default(printed, recipe, pictures):
    file = recipe("all", "accum_steps: 2\nseed: 7\ncompile: true\nfreeze: bn\nval_fraction: 0.5")
    _, config = printed(pictures, "-c", file)
    assert (config["accum_steps"], config["seed"], config["compile"]) == (2, 7, True)
    flags = ("--accum-steps", "1", "--seed", "0", "--compile=false", "--freeze", "none")
    _, config = printed(pictures, "-c", file, *flags)
    for name in ("accum_steps", "seed", "compile", "freeze"):
        assert config[name] == USUAL[name], name
    assert config["val_fraction"] == 0.5


def test_data_on_the_command_line_holds(printed, recipe, pictures):
    file = recipe("data", "data: elsewhere")
    assert printed("-c", file)[0].startswith("# Not derived")
    assert printed(pictures, "-c", file)[1]["data"] == str(pictures)
    assert printed("-c", file, "--data", pictures)[1]["data"] == str(pictures)


def test_updates_and_epochs_take_each_others_place(printed, recipe, pictures):
    file = recipe("long", "epochs: 300\nbatch_size: 9")
    _, config = printed(pictures, "-c", file, "--updates", "3")
    assert (config["updates"], config["epochs"]) == (3, 2)
    file = recipe("counted", "updates: 300\nbatch_size: 9")
    _, config = printed(pictures, "-c", file, "--epochs", "4")
    assert (config["updates"], config["epochs"]) == (None, 4)


def test_a_teacher_and_how_it_teaches(printed, recipe, pictures):
    _, config = printed(pictures)
    assert (config["teacher"], config["teacher_args"]) == (None, {})
    assert config["distill"] is None
    text, config = printed(pictures, "--teacher", "demo", "--teacher-args.in-chans", "1")
    assert (config["teacher"], config["teacher_args"]) == ("demo", {"in_chans": 1})
    assert config["distill"] == {"kind": "hard", "alpha": 0.5, "tau": 1.0}
    assert printed("-c", recipe("again", text))[0] == text
    file = recipe("soft", "teacher: one\nteacher_args: {depth: 1}\ndistill: {kind: soft, tau: 2}")
    _, config = printed(pictures, "-c", file, "--distill.tau", "3", "--teacher", "other")
    assert config["distill"] == {"kind": "soft", "alpha": 0.5, "tau": 3}
    assert (config["teacher"], config["teacher_args"]) == ("other", {})
    _, config = printed(pictures, "-c", file, "--distill.kind", "none")
    assert config["distill"]["kind"] == "none"


def test_short_flags_are_the_dotted_ones(printed, pictures):
    _, config = printed(pictures, "--lr", "0.5", "--weight-decay", "1", "--cutmix", "2")
    assert (config["optim"]["lr"], config["optim"]["weight_decay"]) == (0.5, 1)
    assert config["mix"]["cutmix"] == 2
    _, config = printed(pictures, "--optim.lr", "0.5", "--mixup", "1", "--precision", "bfloat16")
    assert (config["optim"]["lr"], config["mix"]["mixup"]) == (0.5, 1)
    assert config["precision"] == "bf16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {wieght_decay: 1}", ("bad.yaml", "optim.wieght_decay", "'weight_decay'")),
        ("bacth_size: 3", ("bad.yaml", "bacth_size", "'batch_size'")),
        ("epochs: many", ("bad.yaml", "'many' for epochs", "a whole number")),
        ("epochs: [1", ("bad.yaml", "not YAML")),
        ("epochs: 1\nepochs: 2", ("bad.yaml", "epochs stands twice")),
        ("- 1", ("bad.yaml", "[1]", "keys with values")),
        ("", ("bad.yaml", "None", "keys with values")),
        ("model: cvt_nano_32\nfreeze: backbone", ("freeze backbone", "--weights")),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(run, recipe, pictures, text, words):
    code, out, err = run("train", pictures, "-c", recipe("bad", text), "--print-config")
    assert (code, out) == (2, "")
    assert err.startswith("cvt: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_file_that_contradicts_itself_is_refused(run, recipe, pictures):
    file = recipe("bad", f"data: {pictures}\nepochs: 2\nupdates: 500")
    code, out, err = run("train", "-c", file, "--print-config")
    assert (code, out) == (2, "")
    assert "Got epochs 2 and updates 500" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-c", "cvt_13_in1"), ("cvt_13_in1", "'cvt_13_in1k'", "cvt_21_in1k")),
        (("-c", "nowhere/mine.yaml"), ("nowhere/mine.yaml",)),
        (("--epochs", "3", "--updates", "500"), ("epochs 3", "updates 500")),
        (("--bacth-size", "3"), ("--bacth-size", "--batch-size")),
        (("-c",), ("-c requires",)),
        (("--distill.kind", "soft"), ("distill.kind soft", "--teacher")),
        (("--model", "cvt_nano_33"), ("cvt_nano_33", "'cvt_nano_32'")),
        (("--model-args.depht", "2"), ("depht", "'depth'")),
        (("--model-args.depth", "[1, 2]"), ("[1, 2]", "3 stages")),
        (("--model-args.num-classes", "2"), ("num_classes", "the data")),
        (("--weights", "demo", "--model-args.depht", "2"), ("depht", "'depth'")),
        (("--model", "vit_small_patch16_224", "--image-size", "8"), ("8", "16")),
        (("--batch-size", "5000"), ("batch_size 5000", "smaller")),
        (("--data", "nowhere", "--model", "cvt_14"), ("cvt_14", "'cvt_13'")),
        (("--distill.kind", "loud"), ("--distill.kind", "soft")),
    ],
)
def test_a_mistake_in_a_flag_is_one_sentence(run, arguments, words):
    code, out, err = run("train", *arguments, "--print-config")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_of_many_processes_one_speaks(run, pictures, monkeypatch):
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        code, out, err = run("train", pictures, "--print-config")
        assert (code, bool(out), err) == (0, speaks, "")
        code, out, err = run("train", "-c", "nowhere")
        assert (code, out, bool(err)) == (2, "", speaks)


def test_what_is_printed_is_what_runs(run, recipe, pictures, monkeypatch):
    ran = []

    def stop(asked, progress, clock):
        ran.append(asked)
        raise UserError("That is enough.")

    monkeypatch.setattr("cvt.training.loop.train_as_asked", stop)
    file = recipe("mine", "epochs: 300\nseed: 3")
    code, _, _ = run("train", pictures, "-c", file, "--epochs", "1", "--compile=false")
    assert code == 2
    said = {"data": str(pictures), "epochs": 1, "seed": 3, "compile": False, "optim": {}}
    assert ran == [said]


def test_a_resumed_runs_config_is_the_runs(run, pictures, tmp_path):
    tiny = ("--model", "cvt_nano_32", "--model-args.depth", "1", "--image-size", "8")
    quick = (*tiny, "--epochs", "1", "--batch-size", "8", "--num-workers", "0", "--device", "cpu")
    assert run("train", pictures, *quick, "--out", tmp_path / "run")[0] == 0
    code, out, _ = run("train", "--resume", tmp_path / "run", "--print-config")
    assert code == 0
    stored = read_yaml((tmp_path / "run" / "config.yaml").read_text())
    assert read_yaml(out) == {**stored, "resume": str(tmp_path / "run")}
    (tmp_path / "again.yaml").write_text(out)
    assert run("train", "-c", tmp_path / "again.yaml", "--print-config")[1] == out
    code, _, err = run("train", "--resume", tmp_path / "run", "--print-config", "--seed", "5")
    assert code == 2
    assert "seed 5" in err
