import dataclasses
from itertools import product

import pytest
import torch

from cvt.errors import UserError
from cvt.plain import from_plain
from cvt.systems.cvt import ROWS
from cvt.training.config import DistillConfig, TrainConfig
from cvt.training.defaults import START as SHIPPED
from cvt.training.defaults import (
    DataFacts,
    default_recipes,
    find_recipe,
    overlay,
    preprocessing_for,
    read_layers,
    read_recipe,
    recipe_folders,
    resumed,
    said,
    same_chunks,
    shipped_recipes,
    with_start,
)
from cvt.training.defaults import derive as derived
from cvt.weights.record import Preprocessing, Record

CPU, GPU = torch.device("cpu"), torch.device("meta")  # meta stands for any accelerator
DIGITS = DataFacts(name="digits", num_images=1259, median_side=8)
CIFAR = DataFacts(name="torch/cifar10", num_images=45_000, median_side=32)
PHOTOS = DataFacts(name="photos", num_images=1_000_000, median_side=400)
START = Record(
    model="cvt_13",
    spec=ROWS["cvt_13"],
    preprocessing=Preprocessing(input_size=(3, 384, 384), crop_pct=1.0, crop_mode="squash"),
)


def derive(asked: dict, *found) -> TrainConfig:
    return derived(said(asked, "the settings"), *found)


@pytest.mark.parametrize(
    ("facts", "device", "weights"),
    list(product((DIGITS, CIFAR, PHOTOS), (CPU, GPU), (None, "some.safetensors"))),
)
def test_what_was_derived_is_derived_to_the_same(facts, device, weights):
    start = START if weights else None
    config = derive({"weights": weights}, facts, device, start)
    assert config.precision == "float32"
    assert config.optim.base_lr is None if weights else config.optim.base_lr
    assert derive(config.to_dict(), facts, device, start) == config


def test_what_is_chosen_for_whom():
    on_cpu = ["defaults/photographs", "defaults/photographs_on_cpu"]
    assert default_recipes({}, PHOTOS, CPU) == on_cpu
    assert default_recipes({"weights": "w"}, PHOTOS, CPU) == [*on_cpu, "defaults/fine_tuning"]
    probing = {"weights": "w", "freeze": "backbone"}
    assert default_recipes(probing, CIFAR, GPU) == ["defaults/small", "defaults/probing"]
    assert default_recipes({}, DIGITS, GPU) == ["digits"]


@pytest.mark.parametrize(("side", "start"), [(28, 48), (32, 48), (64, 64), (65, 96), (480, 96)])
def test_a_run_starts_from_the_weights_that_come_along(side, start):
    facts = dataclasses.replace(PHOTOS, median_side=side)
    assert with_start({"seed": 1}, facts) == {"seed": 1, "weights": SHIPPED, "image_size": start}
    assert with_start({"image_size": 80}, facts)["image_size"] == 80


@pytest.mark.parametrize(
    "asked", [{"model": "cvt_13"}, {"model_args": {"depth": 1}}, {"weights": "w"}]
)
def test_not_where_somebody_names_a_start_or_a_network(asked):
    assert with_start(asked, PHOTOS) == asked
    assert with_start({"weights": "none"}, PHOTOS) == {}
    assert with_start({}, DIGITS) == {}


def test_defaults_are_recipes_that_can_be_named():
    (folder,) = [each for each in recipe_folders() if each.is_dir()]
    names = {path.stem for path in (folder / "defaults").glob("*.yaml")}
    chosen = {
        name
        for facts in (DIGITS, CIFAR, PHOTOS)
        for device in (CPU, GPU)
        for asked in ({}, {"weights": SHIPPED}, {"weights": "w", "freeze": "backbone"})
        for name in default_recipes(asked, facts, device)
    }
    assert chosen == {"digits", *(f"defaults/{name}" for name in names)}
    assert read_recipe("defaults/small")["model"] == "cvt_mini_32"
    config = derive(read_recipe("defaults/probing"), CIFAR, GPU)
    assert config.optim.lr == 3e-2


@pytest.mark.parametrize(
    ("facts", "device", "model", "image_size"),
    [
        (DIGITS, CPU, "cvt_nano_32", 16),
        (DIGITS, GPU, "cvt_nano_32", 16),
        (CIFAR, CPU, "cvt_nano_32", 32),
        (CIFAR, GPU, "cvt_mini_32", 32),
        (dataclasses.replace(CIFAR, median_side=64), GPU, "cvt_mini_32", 64),
        (PHOTOS, CPU, "cvt_nano_32", 128),
        (PHOTOS, GPU, "cvt_13", 224),
    ],
)
def test_model_and_size_follow_the_data(facts, device, model, image_size):
    config = derive({}, facts, device)
    assert (config.model, config.image_size) == (model, image_size)


def test_digits_are_never_mirrored():
    assert derive({}, DIGITS, CPU).augment.hflip == 0


def test_photographs_follow_the_published_recipe():
    config = derive({"batch_size": 2048}, PHOTOS, GPU)
    assert config.optim.lr == pytest.approx(2e-3)  # the YAML's 2.5e-4 for each of 8 GPUs
    assert config.optim.min_lr == pytest.approx(2e-5)
    assert (config.epochs, config.optim.warmup_epochs, config.optim.weight_decay) == (300, 5, 0.05)
    assert (config.mix.mixup, config.mix.cutmix, config.mix.smoothing) == (0.8, 1.0, 0.1)
    assert config.augment.auto_augment == "rand-m9-mstd0.5-inc1"
    assert config.augment.re_prob == 0.25


def test_what_the_caller_says_holds():
    given = {"model": "cvt_13", "batch_size": 32, "optim": {"lr": 0.5, "clip_grad": 0.0}}
    config = derive(given, CIFAR, CPU)
    assert (config.model, config.batch_size, config.model_args) == ("cvt_13", 32, {})
    assert (config.optim.lr, config.optim.clip_grad) == (0.5, 0.0)


def test_changes_to_a_row_do_not_mix_with_a_presets():
    config = derive({"model_args": {"kv_stride": 1}}, PHOTOS, CPU)
    assert config.model_args == {"kv_stride": 1}


def test_the_batch_fits_a_small_data_set():
    few = dataclasses.replace(PHOTOS, num_images=10)
    config = derive({}, few, GPU)
    assert config.batch_size == 10
    assert config.optim.lr == pytest.approx(5e-4 * 10 / 512)


def test_weights_bring_their_model_and_size():
    config = derive({"weights": "w"}, PHOTOS, CPU, START)
    assert (config.model, config.image_size) == ("cvt_13", 384)
    with pytest.raises(UserError, match="Got model 'cvt_21' and weights of 'cvt_13'"):
        derive({"weights": "w", "model": "cvt_21"}, PHOTOS, CPU, START)


@pytest.mark.parametrize("facts", [DIGITS, CIFAR, PHOTOS])
@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("batch_size", [None, 8, 512])
@pytest.mark.parametrize(("freeze", "rate"), [("none", 2e-3), ("bn", 2e-3), ("backbone", 3e-2)])
def test_weights_are_trained_at_one_rate_everywhere(facts, device, batch_size, freeze, rate):
    """By the defaults as by the recipes; a base_lr, where it is given, is scaled all the same."""
    given = {"weights": "w", "freeze": freeze, "batch_size": batch_size}
    config = derive(given, facts, device, START)
    assert (config.optim.lr, config.optim.min_lr) == (rate, rate / 100)
    name = "linear_probe" if freeze == "backbone" else "finetune_folder"
    recipe = derive(read_recipe(name), facts, device, START).optim
    for field in ("opt", "lr", "min_lr", "weight_decay", "layer_decay", "clip_grad"):
        assert getattr(recipe, field) == getattr(config.optim, field), field
    scaled = {**given, "optim": {"base_lr": 2e-3}}
    optim = derive(scaled, facts, device, START).optim
    assert optim.lr == pytest.approx(2e-3 * (batch_size or config.batch_size) / 512)


@pytest.mark.parametrize(
    "facts", [DIGITS, CIFAR, dataclasses.replace(CIFAR, median_side=64), PHOTOS]
)
@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("given", [{}, {"image_size": 32}, {"image_size": 96}, {"epochs": 2}])
def test_naming_the_default_model_changes_nothing(facts, device, given):
    config = derive(given, facts, device)
    named = {**given, "model": config.model}
    assert derive(named, facts, device) == config
    assert derive({**named, "model_args": {"depth": 1}}, facts, device) == derive(
        {**given, "model_args": {"depth": 1}}, facts, device
    )


def test_another_model_is_its_row():
    other = {"model": "cvt_mini_32"}
    assert derive(other, PHOTOS, CPU).model_args == {}
    demo = dataclasses.replace(START, model="cvt_nano_32", spec=ROWS["cvt_nano_32"])
    assert derive({"weights": "demo"}, PHOTOS, CPU, demo).model_args == {}
    assert derive({"image_size": 32}, PHOTOS, CPU).model_args == {}  # what it is made for


def test_fast_says_what_follows_from_it():
    filled = read_layers([], {"fast": True, "seed": 3})
    assert filled == {
        **{"fast": True, "seed": 3, "optim": {}, "weights": "demo"},
        **{"updates": 1, "freeze": "backbone", "head": "probed"},
    }
    assert read_layers([], filled) == filled
    assert read_layers([], {"fast": True, "weights": "w"})["weights"] == "w"
    assert "weights" not in read_layers([], {"fast": False})


def test_fast_takes_the_place_of_a_length_and_a_length_that_of_fast():
    fast = read_layers([], {"fast": True})
    for length in ({"epochs": 30}, {"updates": 400}):
        assert "epochs" not in overlay(length, {"fast": True})
        assert "fast" not in overlay(fast, length)
        assert overlay({**length, "fast": False}, {"seed": 1}).items() >= length.items()
    config = derive(fast, PHOTOS, CPU, START).to_dict()
    assert derive(read_layers([], config), PHOTOS, CPU, START).to_dict() == config
    with pytest.raises(UserError, match="Got fast with epochs 3"):
        read_layers([], {"fast": True, "epochs": 3})


@pytest.mark.parametrize(
    ("own", "median", "side"),
    [(32, 400, 48), (64, 400, 96), (96, 400, 144), (64, 80, 64), (128, 400, 128), (224, 400, 224)],
)
def test_fast_looks_at_more_pixels_than_small_weights_saw(own, median, side):
    start = dataclasses.replace(START, preprocessing=Preprocessing(input_size=(3, own, own)))
    facts = dataclasses.replace(PHOTOS, median_side=median)
    asked = read_layers([], {"fast": True, "weights": "w"})
    assert derive(asked, facts, CPU, start).image_size == side
    assert derive({**asked, "image_size": 80}, facts, CPU, start).image_size == 80
    assert derive({"weights": "w"}, facts, CPU, start).image_size == own


def test_only_a_try_decides_where_bf16_may_pay(monkeypatch):
    monkeypatch.setattr("cvt.training.defaults.may_gain_from_bf16", lambda device: True)
    assert derive({}, PHOTOS, CPU).precision == "auto"
    assert derive({"precision": "bf16"}, PHOTOS, CPU).precision == "bf16"


def test_what_nobody_asked_for_is_plain():
    config = derive({}, PHOTOS, GPU)
    assert (config.optim.opt, config.optim.momentum, config.optim.layer_decay) == ("adamw", 0.9, 1)
    assert (config.ema_decay, config.augment.repeats, config.mix.loss) == (0, 1, "ce")
    assert config.updates is None


@pytest.mark.parametrize(("batch_size", "accum_steps"), [(512, 1), (512, 8), (2048, 1), (48, 3)])
def test_the_learning_rate_follows_the_global_batch_alone(batch_size, accum_steps):
    given = {"batch_size": batch_size, "accum_steps": accum_steps, "optim": {"base_lr": 5e-4}}
    config = derive(given, PHOTOS, GPU)
    assert config.optim.lr == pytest.approx(5e-4 * batch_size / 512, rel=1e-12)


@pytest.mark.parametrize(
    ("updates", "batch_size", "epochs"),
    [
        (1, 100, 1),
        (450, 100, 1),  # 450 full batches in an epoch
        (451, 100, 2),
        (87 * 3, 512, 3),  # 45,000 // 512 = 87
        (87 * 3 + 1, 512, 4),
        (7, 90_000, 7),  # no full batch: refused elsewhere, not divided by here
    ],
)
def test_epochs_follow_from_updates(updates, batch_size, epochs):
    config = derive({"updates": updates, "batch_size": batch_size}, CIFAR, GPU)
    assert (config.epochs, config.updates) == (epochs, updates)
    assert derive(config.to_dict(), CIFAR, GPU) == config


def test_epochs_and_updates_may_not_contradict_each_other():
    with pytest.raises(UserError, match="Got epochs 9 and updates 450, which end in epoch 1; give"):
        derive({"epochs": 9, "updates": 450, "batch_size": 100}, CIFAR, GPU)


def test_freezing_a_fresh_backbone_is_a_mistake():
    with pytest.raises(UserError, match="Got head probed without weights to probe"):
        derive({"head": "probed"}, PHOTOS, CPU)
    with pytest.raises(UserError, match="Got freeze backbone without weights to keep"):
        derive({"freeze": "backbone"}, PHOTOS, CPU)
    given = {"freeze": "backbone", "weights": "w"}
    assert derive(given, PHOTOS, CPU, START).freeze == "backbone"
    assert derive({"freeze": "bn"}, PHOTOS, CPU).freeze == "bn"


def test_workers_share_the_cores_with_the_processes_beside(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(24)), raising=False)
    assert derive({}, PHOTOS, GPU).num_workers == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert derive({}, PHOTOS, GPU).num_workers == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "48")
    assert derive({}, PHOTOS, GPU).num_workers == 1


def test_fine_tuning_at_384_pixels_uses_pictures_whole():
    at_224 = dataclasses.replace(START, preprocessing=Preprocessing(input_size=(3, 224, 224)))
    whole = Preprocessing(input_size=(3, 384, 384), crop_pct=1.0, crop_mode="squash")
    config = derive({"weights": "w", "image_size": 384}, PHOTOS, GPU, at_224)
    assert preprocessing_for(config, 3, at_224) == whole
    config = derive({"weights": "w", "image_size": 288}, PHOTOS, GPU, at_224)
    assert preprocessing_for(config, 3, at_224) == Preprocessing(input_size=(3, 288, 288))


def test_preprocessing_of_small_large_and_known():
    small = preprocessing_for(derive({}, CIFAR, CPU), 3, None)
    assert (small.input_size, small.crop_pct, small.mean) == ((3, 32, 32), 1.0, (0.5, 0.5, 0.5))
    large = preprocessing_for(derive({}, PHOTOS, GPU), 3, None)
    assert large == Preprocessing(input_size=(3, 224, 224))
    known = preprocessing_for(derive({"image_size": 96}, PHOTOS, CPU), 3, START)
    assert known == dataclasses.replace(START.preprocessing, input_size=(3, 96, 96))
    assert preprocessing_for(derive({}, PHOTOS, GPU), 1, START).mean == (0.5,)


def test_a_teacher_fills_in_how_it_teaches():
    """As DeiT's code does it; without a teacher nothing is filled in."""
    hard = DistillConfig(kind="hard", alpha=0.5, tau=1.0)
    taught = derive({"teacher": "demo"}, CIFAR, CPU)
    assert taught.distill == hard
    assert derive(taught.to_dict(), CIFAR, CPU) == taught
    soft = {"teacher": "demo", "distill": {"kind": "soft", "tau": 3.0}}
    assert derive(soft, CIFAR, CPU).distill == dataclasses.replace(hard, kind="soft", tau=3.0)
    alone = derive({}, CIFAR, CPU)
    assert alone.distill is None
    for kind in (None, "none"):
        silent = {"distill": {"kind": kind}}
        assert not derive(silent, CIFAR, CPU).is_taught
    with pytest.raises(UserError, match=r"Got distill.alpha 0.3 without a teacher .*--teacher"):
        derive({"distill": {"alpha": 0.3}}, CIFAR, CPU)


# --- Layers.


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
    assert said(merged, "it") == said(both, "it")


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
    assert find_recipe("cvt_13_pets") == shipped_recipes()["cvt_13_pets"]
    assert find_recipe("cvt_13_pets.yaml") == shipped_recipes()["cvt_13_pets"]
    (tmp_path / "cvt_13_pets.yaml").write_text("seed: 1")
    assert find_recipe("cvt_13_pets.yaml").read_text() == "seed: 1"
    with pytest.raises(UserError, match=r"no config file cvt_13_pet,.*Did you mean 'cvt_13_pets'"):
        find_recipe("cvt_13_pet")
    with pytest.raises(UserError, match=r"no config file elsewhere/digits.yaml,"):
        find_recipe("elsewhere/digits.yaml")


# --- Runs that go on.


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"parallel": "fsdp"}, "parallel"),
        ({"precision": "bf16"}, "precision"),
        ({"optim": {"lr": 1.0}}, r"optim\.lr"),
        ({"mix": {"smoothing": 0.5}}, r"mix\.smoothing"),
        ({"teacher": "demo"}, "teacher"),
        ({"model_args": {"depth": 1}}, "model_args"),
    ],
)
def test_a_config_holds_unless_forced(asked, name):
    stored = derive({"optim": {"lr": 0.1, "opt": "sgd"}}, DIGITS, CPU)
    with pytest.raises(UserError, match=f"Got {name} .*, but .* was started with .*--force"):
        resumed(stored, asked)
    forced = resumed(stored, {**asked, "force": True})
    assert forced.optim.opt == "sgd"
    assert forced == from_plain(TrainConfig, merged(stored, asked), "it")
    assert resumed(stored, {}) == stored
    assert resumed(stored, said(stored.to_dict(), "it")) == stored


def merged(stored: TrainConfig, asked: dict) -> dict:
    plain = {**stored.to_dict(), "force": True}
    for key, value in asked.items():
        plain[key] = {**plain[key], **value} if key in ("optim", "mix") else value
    return plain


def test_what_computes_nothing_may_change():
    stored = derive({"seed": 3, "download": True}, DIGITS, CPU)
    free = {
        "device": "cuda",
        "num_workers": 7,
        "checkpoint_minutes": 1.0,
        "keep_checkpoints": 5,
        "data_dir": "there",
    }
    assert resumed(stored, free) == dataclasses.replace(stored, download=False, **free)
    assert resumed(stored, {"download": True}).download
    assert resumed(stored, {"device": "auto", "precision": "auto"}).device == "cpu"


@pytest.mark.parametrize(
    ("chunks", "world_size", "steps"), [(8, 1, 8), (8, 2, 4), (8, 8, 1), (6, 3, 2), (1, 1, 1)]
)
def test_fewer_processes_take_more_steps(chunks, world_size, steps):
    assert same_chunks(derive({}, DIGITS, CPU), chunks, world_size).accum_steps == steps


@pytest.mark.parametrize(("chunks", "world_size"), [(8, 3), (2, 4), (1, 2)])
def test_processes_that_the_chunks_do_not_go_round_are_refused(chunks, world_size):
    config = derive({}, DIGITS, CPU)
    with pytest.raises(UserError, match=f"Got {world_size} processes .* a divisor of {chunks}; "):
        same_chunks(config, chunks, world_size)
    forced = same_chunks(dataclasses.replace(config, force=True), chunks, world_size)
    assert forced.accum_steps == max(chunks // world_size, 1)
