import pytest

from cvt.errors import UserError
from cvt.training.config import TrainConfig
from cvt.training.defaults import find_config, overlay, read_layers, shipped_recipes


@pytest.mark.parametrize(
    ("lower", "upper", "both"),
    [
        ({"seed": 1}, {}, {"seed": 1}),
        ({"seed": 1, "epochs": 2}, {"seed": 3}, {"seed": 3, "epochs": 2}),
        ({"optim": {"opt": "sgd"}}, {"optim": {"lr": 1.0}}, {"optim": {"opt": "sgd", "lr": 1.0}}),
        ({"epochs": 300}, {"updates": 5}, {"updates": 5}),
        ({"updates": 5}, {"epochs": 300}, {"epochs": 300}),
        ({"epochs": 300}, {"updates": None}, {"epochs": 300, "updates": None}),
        ({"optim": {"lr": 1.0}}, {"optim": {"base_lr": 2.0}}, {"optim": {"base_lr": 2.0}}),
        ({"optim": {"base_lr": 2.0}}, {"optim": {"lr": 1.0}}, {"optim": {"lr": 1.0}}),
        ({"epochs": 3, "updates": 5}, {"batch_size": 7}, {"updates": 5, "batch_size": 7}),
        (
            {"model": "cvt_13", "model_args": {"depth": 1}},
            {"model_args": {"kv_stride": 1}},
            {"model": "cvt_13", "model_args": {"depth": 1, "kv_stride": 1}},
        ),
        ({"model": "cvt_13", "model_args": {"depth": 1}}, {"model": "cvt_21"}, {"model": "cvt_21"}),
        (
            {"model": "cvt_13", "model_args": {"depth": 1}},
            {"model": "cvt_13"},
            {"model": "cvt_13", "model_args": {"depth": 1}},
        ),
        (
            {"model_args": {"depth": 1}},
            {"model": "cvt_21"},
            {"model": "cvt_21", "model_args": {"depth": 1}},
        ),
    ],
)
def test_the_upper_layer_holds(lower, upper, both):
    merged = overlay(lower, upper)
    assert TrainConfig.from_dict(merged) == TrainConfig.from_dict(both)


def test_layers_are_left_as_they_were():
    lower, upper = {"optim": {"lr": 1.0}, "epochs": 3}, {"optim": {"base_lr": 2.0}, "updates": 4}
    overlay(lower, upper)
    assert (lower, upper) == (
        {"optim": {"lr": 1.0}, "epochs": 3},
        {"optim": {"base_lr": 2.0}, "updates": 4},
    )


DERIVED = {"batch_size": 256, "optim": {"base_lr": 5e-4, "lr": 2.5e-4, "min_lr": 2.5e-6}}


def test_what_was_derived_is_derived_again():
    merged = overlay(DERIVED, {"batch_size": 2048})
    assert merged == {"batch_size": 2048, "optim": {"base_lr": 5e-4}}


@pytest.mark.parametrize(("name", "value"), [("lr", 3e-4), ("min_lr", 1e-5)])
def test_what_was_said_is_kept(name, value):
    said = {**DERIVED, "optim": {**DERIVED["optim"], name: value}}
    assert overlay(said, {"batch_size": 2048})["optim"][name] == value


def test_later_files_and_then_flags_hold(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 1\nbatch_size: 10\nseed: 1\noptim: {lr: 1e-3}")
    (tmp_path / "b.yaml").write_text("batch_size: 20\nseed: 2\noptim: {opt: sgd}")
    names = [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    optim = {"lr": 1e-3, "opt": "sgd"}
    assert read_layers(names, {"seed": 3}) == {
        "epochs": 1,
        "batch_size": 20,
        "seed": 3,
        "optim": optim,
    }
    assert read_layers(names[::-1], {})["batch_size"] == 10
    assert read_layers([], {"seed": 3})["seed"] == 3


def test_recipes_are_found_by_name_and_files_go_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cvt_13_pets").mkdir()
    assert find_config("cvt_13_pets") == shipped_recipes()["cvt_13_pets"]
    assert find_config("cvt_13_pets.yaml") == shipped_recipes()["cvt_13_pets"]
    (tmp_path / "cvt_13_pets.yaml").write_text("seed: 1")
    assert find_config("cvt_13_pets.yaml").read_text() == "seed: 1"
    with pytest.raises(UserError, match=r"no config file cvt_13_pet,.*Did you mean 'cvt_13_pets'"):
        find_config("cvt_13_pet")
    with pytest.raises(UserError, match=r"no config file elsewhere/digits.yaml,"):
        find_config("elsewhere/digits.yaml")
