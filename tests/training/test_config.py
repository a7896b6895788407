import ast
import dataclasses
import inspect
import subprocess
import sys

import pytest

from cvt.data import Augment
from cvt.errors import UserError
from cvt.training import config as groups
from cvt.training import config as module
from cvt.training.config import (
    AugmentConfig,
    MixConfig,
    OptimConfig,
    TrainConfig,
    load_config,
    read_config,
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
        ({"augment": {"scale": [0.5]}}, r"Got augment.scale \(0.5,\), expected two numbers."),
        ({"updates": 0}, "Got updates 0, expected 1 or more."),
        ({"accum_steps": None}, "Got accum_steps None, expected a whole number."),
        ({"freeze": "head"}, "Got freeze 'head', expected none or bn or backbone."),
        ({"optim": {"opt": "adam"}}, "Got optim.opt 'adam', expected adamw or sgd or lamb."),
        ({"optim": {"momentum": 1.0}}, "Got optim.momentum 1.0, expected a number from 0 to less"),
        ({"optim": {"layer_decay": 0}}, "Got optim.layer_decay 0, expected a number above 0"),
        ({"ema_decay": 1}, "Got ema_decay 1, expected a number from 0 to less than 1."),
        ({"mix": {"loss": "mse"}}, "Got mix.loss 'mse', expected ce or bce."),
        ({"augment": {"crop": "middle"}}, "Got augment.crop 'middle', expected random_resized or"),
        ({"distill": {"kind": "loud"}}, "Got distill.kind 'loud', expected hard or soft or none."),
        ({"distill": {"alpha": 1.5}}, "Got distill.alpha 1.5, expected a number from 0 to 1."),
        ({"distill": {"tau": 0}}, "Got distill.tau 0, expected a number above 0."),
        ({"optim": 3}, "Got 3 for optim, expected keys with values."),
        ("digits", "Got 'digits' for the config, expected keys with values."),
    ],
)
def test_mistakes_are_one_sentence(plain, message):
    with pytest.raises(UserError, match=message):
        TrainConfig.from_dict(plain)


def test_unreadable_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*none.yaml"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"The config .*binary.yaml is not YAML"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path)


def test_a_files_mistakes_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optim:\n  wieght_decay: 1")
    with pytest.raises(
        UserError, match=r"mine.yaml: Unknown key optim.wieght_decay.* 'weight_decay'\?"
    ):
        load_config(path)
    path.write_text("epochs: ten")
    with pytest.raises(UserError, match=r"mine.yaml: Got epochs 'ten', expected a whole number."):
        load_config(path)


def test_only_what_a_file_names_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 3\noptim: {lr: 1e-3}\naugment: {scale: [0.5, 1]}")
    plain = read_config(tmp_path / "mine.yaml")
    assert plain == {"epochs": 3, "optim": {"lr": 1e-3}, "augment": {"scale": [0.5, 1]}}


def test_model_args_from_the_command_line_get_their_types():
    args = {"depth": "2", "kv-stride": "[1, 2, 2]", "qkv_bias": "false", "norm_eps": "1e-6"}
    typed = TrainConfig(model_args=args).model_args
    assert typed == {"depth": 2, "kv_stride": [1, 2, 2], "qkv_bias": False, "norm_eps": 1e-6}
    assert TrainConfig(teacher_args={"in-chans": "1"}).teacher_args == {"in_chans": 1}
    odd = {"projection": "avg", "empty": "", "broken": "[1"}
    assert TrainConfig(model_args=odd).model_args == odd


def test_augment_mirrors_the_data_rooms_fields():
    ours = [each.name for each in dataclasses.fields(AugmentConfig)]
    assert ours == [each.name for each in dataclasses.fields(Augment)]


def test_every_field_has_a_line_of_prose():
    nodes = [*ast.parse(inspect.getsource(module)).body, *ast.parse(inspect.getsource(groups)).body]
    assert sum(isinstance(each, ast.ClassDef) for each in nodes) == 5
    for each in nodes:
        if isinstance(each, ast.ClassDef):
            fields = [i for i, node in enumerate(each.body) if isinstance(node, ast.AnnAssign)]
            for i in fields:
                if each.body[i].target.id not in groups.GROUPS:
                    assert isinstance(each.body[i + 1], ast.Expr), each.body[i].target.id


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, cvt.training.config as c; c.TrainConfig();"
        "print({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_changes_of_a_row_are_keys_with_values(value):
    with pytest.raises(UserError, match="Got model_args"):
        TrainConfig.from_dict({"model_args": value})
