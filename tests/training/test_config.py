import ast
import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

from cvt.data import Augment
from cvt.errors import UserError
from cvt.training import config as module
from cvt.training.config import (
    GROUPS,
    USUAL,
    DistillConfig,
    MixConfig,
    OptimConfig,
    TrainConfig,
    load_config,
    save_config,
)
from cvt.training.defaults import read_recipe, said
from trained import config_of


def test_round_trip_through_yaml(tmp_path):
    config = config_of(
        data="torch/cifar10",
        model="cvt_mini_32",
        model_args={"kv_stride": [1, 2, 2], "projection": "conv"},
        teacher="demo",
        augment={"scale": (0.5, 1.0)},
    )
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config


def test_what_versions_before_left_open_says_nothing():
    """They wrote null for how there is no teaching, and lack what has been added since."""
    plain = config_of().to_dict()
    plain["distill"] = {"kind": None, "alpha": None, "tau": None}
    del plain["deterministic"], plain["augment"]["repeats"]
    assert TrainConfig.from_dict(plain) == config_of()


def test_a_config_has_no_gaps():
    plain = config_of().to_dict()
    del plain["batch_size"]
    with pytest.raises(UserError, match="There is no 'batch_size' in the config"):
        TrainConfig.from_dict(plain)
    with pytest.raises(UserError, match=r"There is no 'optim.lr' in the config"):
        TrainConfig.from_dict({**config_of().to_dict(), "optim": {"opt": "sgd"}})


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"epoch": 3}, "the unknown key 'epoch' in the file. Did you mean 'epochs'?"),
        ({"optim": {"wieght_decay": 1}}, "'optim.wieght_decay'.* Did you mean 'weight_decay'?"),
        ({"epochs": "ten"}, "Got 'ten' for epochs in the file, expected a whole number."),
        ({"epochs": 0}, "Got 0 for epochs in the file, expected a number from 1 on."),
        ({"epochs": True}, "Got True for epochs in the file, expected a whole number."),
        ({"precision": "fp8"}, "Got precision 'fp8', expected one of auto, float32, bf16, fp16."),
        ({"optim": {"lr": -1}}, "Got -1 for optim.lr in the file, expected a number above 0."),
        ({"optim": {"lr": float("nan")}}, "Got nan for optim.lr in the file, expected a number."),
        ({"mix": {"smoothing": 2}}, "Got 2 for mix.smoothing .* a number from 0 to 1."),
        ({"augment": {"scale": "all"}}, "Got 'all' for augment.scale .* a list of 2: "),
        ({"augment": {"scale": [0.5]}}, "Got 1 values for augment.scale in the file"),
        ({"updates": 0}, "Got 0 for updates in the file, expected a number from 1 on."),
        ({"freeze": "head"}, "'head' for freeze .* one of 'none', 'bn', 'backbone'."),
        ({"optim": {"opt": "adam"}}, "'adam' for optim.opt .* 'muon'. Did you mean 'adamw'?"),
        ({"optim": {"momentum": 1.0}}, "1.0 for optim.momentum .* from 0 to less than 1."),
        ({"optim": {"layer_decay": 0}}, "0 for optim.layer_decay .* above 0 to 1."),
        ({"ema_decay": 1}, "1 for ema_decay .* from 0 to less than 1."),
        ({"image_size": 5000}, "5000 for image_size .* from 1 to 4096."),
        ({"mix": {"loss": "mse"}}, "'mse' for mix.loss .* one of 'ce', 'bce'."),
        ({"distill": {"alpha": 1.5}}, "1.5 for distill.alpha .* from 0 to 1."),
        ({"optim": 3}, "Got 3 for optim in the file, expected keys with values."),
        ("digits", "Got 'digits' for the file, expected keys with values."),
        ({"model_args": [1]}, "for model_args in the file, expected keys with values"),
    ],
)
def test_mistakes_are_one_sentence(plain, message):
    with pytest.raises(UserError, match=message):
        said(plain, "the file")


def test_a_config_made_by_hand_is_checked_too():
    with pytest.raises(UserError, match="Got 'mse' for loss in mix"):
        MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.0, loss="mse")
    with pytest.raises(UserError, match="Got 1 for batch_size in the config"):
        TrainConfig(**{**vars(config_of()), "batch_size": 1})


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16"])
def test_number_formats_have_longer_names(name):
    assert said({"precision": name}, "it") == {"precision": "bf16"}


def test_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*none.yaml"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="is not YAML"):
        read_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"The config .*binary.yaml is not YAML"):
        read_recipe(str(tmp_path / "binary.yaml"))


def test_a_files_mistakes_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  wieght_decay: 1")
    with pytest.raises(UserError, match=r"'optim.wieght_decay' in .*mine.yaml.* 'weight_decay'\?"):
        read_recipe(str(path))


def test_only_what_a_file_names_is_said(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 3\noptim: {lr: 1e-3}\nseed:\nmix: {mixup: }")
    assert read_recipe(str(tmp_path / "mine.yaml")) == {"epochs": 3, "optim": {"lr": 1e-3}}


def test_every_field_has_a_line_of_prose():
    groups = {OptimConfig, MixConfig, DistillConfig, TrainConfig, Augment}
    for each in groups:
        (node,) = ast.parse(inspect.getsource(each)).body
        for i, item in enumerate(node.body):
            if isinstance(item, ast.AnnAssign) and item.target.id not in GROUPS:
                assert isinstance(node.body[i + 1], ast.Expr), item.target.id
    assert module.GROUPS == ("optim", "augment", "mix", "distill")


def test_what_is_usual_has_the_types_of_its_fields():
    assert set(USUAL) < {each.name for each in fields(TrainConfig)}
    assert said(USUAL, "it") == {name: value for name, value in USUAL.items() if value is not None}


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, cvt.training.config as c; c.USUAL;"
        "print({'torch', 'timm', 'numpy', 'PIL', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
