import ast
import dataclasses
import inspect
import subprocess
import sys

import pytest

from cvt.data.augment import Augment
from cvt.errors import UserError
from cvt.train import config as module
from cvt.train.config import (
    AugmentConfig,
    MixConfig,
    OptimConfig,
    TrainConfig,
    load_config,
    save_config,
)


def test_round_trip_through_yaml(tmp_path):
    config = TrainConfig(
        data="torch/cifar10",
        model="cvt_mini_32",
        model_args={"kv_stride": [1, 2, 2], "projection": "conv"},
        epochs=3,
        optim=OptimConfig(lr=1e-3),
        augment=AugmentConfig(scale=(0.5, 1.0)),
        mix=MixConfig(mixup=0.2),
    )
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config


def test_missing_keys_keep_their_defaults():
    assert TrainConfig.from_dict({"optim": {"lr": 1}}) == TrainConfig(optim=OptimConfig(lr=1))


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"epoch": 3}, "Unknown key epoch in the config. Did you mean 'epochs'?"),
        ({"optim": {"wieght_decay": 1}}, "optim.wieght_decay.* Did you mean 'weight_decay'?"),
        ({"epochs": "ten"}, "Got epochs 'ten', expected a whole number."),
        ({"epochs": 0}, "Got epochs 0, expected 1 or more."),
        ({"epochs": True}, "Got epochs True, expected a whole number."),
        ({"precision": "fp8"}, "Got precision 'fp8', expected auto or float32 or bf16."),
        ({"optim": {"lr": -1}}, "Got optim.lr -1, expected a number above 0."),
        ({"optim": {"lr": float("nan")}}, "Got optim.lr nan, expected a number above 0."),
        ({"mix": {"smoothing": 2}}, "Got mix.smoothing 2, expected a number from 0 to 1."),
        ({"augment": {"scale": "all"}}, "Got augment.scale 'all', expected two numbers."),
        ({"augment": {"crop": "middle"}}, "Got augment.crop 'middle', expected random_resized or"),
        ({"optim": 3}, "Got 3 for optim, expected keys with values."),
        ("digits", "Got 'digits' for the config, expected keys with values."),
    ],
)
def test_mistakes_are_one_sentence(plain, message):
    with pytest.raises(UserError, match=message):
        TrainConfig.from_dict(plain)


def test_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the config .*none.yaml"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")


def test_model_args_from_the_command_line_get_their_types():
    args = {"depth": "2", "kv_stride": "[1, 2, 2]", "qkv_bias": "false", "projection": "avg"}
    typed = TrainConfig(model_args=args).model_args
    assert typed == {"depth": 2, "kv_stride": [1, 2, 2], "qkv_bias": False, "projection": "avg"}


def test_augment_mirrors_the_data_rooms_fields():
    ours = [each.name for each in dataclasses.fields(AugmentConfig)]
    assert ours == [each.name for each in dataclasses.fields(Augment)]


def test_every_field_has_a_line_of_prose():
    for each in ast.parse(inspect.getsource(module)).body:
        if isinstance(each, ast.ClassDef):
            fields = [i for i, node in enumerate(each.body) if isinstance(node, ast.AnnAssign)]
            groups = ("optim", "augment", "mix")
            for i in fields:
                if each.body[i].target.id not in groups:
                    assert isinstance(each.body[i + 1], ast.Expr), each.body[i].target.id


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, cvt.train.config as c; c.TrainConfig();"
        "print({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
