import dataclasses
from itertools import product

import pytest
import torch

from cvt.errors import UserError
from cvt.systems.cvt import ROWS
from cvt.training.config import DistillConfig, OptimConfig, TrainConfig, load_config
from cvt.training.defaults import DataFacts, derive, find_config, preprocessing_for
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


@pytest.mark.parametrize(
    ("facts", "device", "weights"),
    list(product((DIGITS, CIFAR, PHOTOS), (CPU, GPU), (None, "some.safetensors"))),
)
def test_no_gap_is_left(facts, device, weights):
    config = derive(TrainConfig(weights=weights), facts, device, START if weights else None)
    for group in (config.optim, config.augment, config.mix):
        for name, value in dataclasses.asdict(group).items():
            assert value is not None or (name == "base_lr" and weights), name
    for name in ("model", "epochs", "batch_size", "image_size", "num_workers", "ema_decay"):
        assert getattr(config, name) is not None, name
    assert config.precision == "float32"
    assert derive(config, facts, device, None) == config


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
    config = derive(TrainConfig(), facts, device)
    assert (config.model, config.image_size) == (model, image_size)


def test_digits_are_never_mirrored():
    assert derive(TrainConfig(), DIGITS, CPU).augment.hflip == 0


def test_photographs_follow_the_published_recipe():
    config = derive(TrainConfig(batch_size=2048), PHOTOS, GPU)
    assert config.optim.lr == pytest.approx(2e-3)  # the YAML's 2.5e-4 for each of 8 GPUs
    assert config.optim.min_lr == pytest.approx(2e-5)
    assert (config.epochs, config.optim.warmup_epochs, config.optim.weight_decay) == (300, 5, 0.05)
    assert (config.mix.mixup, config.mix.cutmix, config.mix.smoothing) == (0.8, 1.0, 0.1)
    assert config.augment.auto_augment == "rand-m9-mstd0.5-inc1"
    assert config.augment.re_prob == 0.25


def test_what_the_caller_says_holds():
    given = TrainConfig(model="cvt_13", batch_size=32, optim=OptimConfig(lr=0.5, clip_grad=0.0))
    config = derive(given, CIFAR, CPU)
    assert (config.model, config.batch_size, config.model_args) == ("cvt_13", 32, {})
    assert (config.optim.lr, config.optim.clip_grad) == (0.5, 0.0)


def test_changes_to_a_row_do_not_mix_with_a_presets():
    config = derive(TrainConfig(model_args={"kv_stride": 1}), PHOTOS, CPU)
    assert config.model_args == {"kv_stride": 1}


def test_the_batch_fits_a_small_data_set():
    few = dataclasses.replace(PHOTOS, num_images=10)
    config = derive(TrainConfig(), few, GPU)
    assert config.batch_size == 10
    assert config.optim.lr == pytest.approx(5e-4 * 10 / 512)


def test_weights_bring_their_model_and_size():
    config = derive(TrainConfig(weights="w"), PHOTOS, CPU, START)
    assert (config.model, config.image_size) == ("cvt_13", 384)
    with pytest.raises(UserError, match="Got model 'cvt_21' and weights of 'cvt_13'"):
        derive(TrainConfig(weights="w", model="cvt_21"), PHOTOS, CPU, START)


@pytest.mark.parametrize("facts", [DIGITS, CIFAR, PHOTOS])
@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("batch_size", [None, 8, 512])
@pytest.mark.parametrize(("freeze", "rate"), [("none", 2e-3), ("bn", 2e-3), ("backbone", 3e-2)])
def test_weights_are_trained_at_one_rate_everywhere(facts, device, batch_size, freeze, rate):
    """By the presets as by the recipes; a base_lr, where it is given, is scaled all the same."""
    given = TrainConfig(weights="w", freeze=freeze, batch_size=batch_size)
    config = derive(given, facts, device, START)
    assert (config.optim.lr, config.optim.min_lr) == (rate, rate / 100)
    name = "linear_probe" if freeze == "backbone" else "finetune_folder"
    recipe = derive(load_config(find_config(name)), facts, device, START).optim
    for field in ("opt", "lr", "min_lr", "weight_decay", "layer_decay", "clip_grad"):
        assert getattr(recipe, field) == getattr(config.optim, field), field
    scaled = dataclasses.replace(given, optim=OptimConfig(base_lr=2e-3))
    optim = derive(scaled, facts, device, START).optim
    assert optim.lr == pytest.approx(2e-3 * (batch_size or config.batch_size) / 512)


@pytest.mark.parametrize(
    "facts", [DIGITS, CIFAR, dataclasses.replace(CIFAR, median_side=64), PHOTOS]
)
@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("given", [{}, {"image_size": 32}, {"image_size": 96}, {"epochs": 2}])
def test_naming_the_default_model_changes_nothing(facts, device, given):
    config = derive(TrainConfig(**given), facts, device)
    named = TrainConfig(**given, model=config.model)
    assert derive(named, facts, device) == config
    assert derive(dataclasses.replace(named, model_args={"depth": 1}), facts, device) == derive(
        TrainConfig(**given, model_args={"depth": 1}), facts, device
    )


def test_another_model_is_its_row():
    other = TrainConfig(model="cvt_mini_32")
    assert derive(other, PHOTOS, CPU).model_args == {}
    demo = dataclasses.replace(START, model="cvt_nano_32", spec=ROWS["cvt_nano_32"])
    assert derive(TrainConfig(weights="demo"), PHOTOS, CPU, demo).model_args == {}
    assert derive(TrainConfig(image_size=32), PHOTOS, CPU).model_args == {}  # what it is made for


def test_only_a_try_decides_where_bf16_may_pay(monkeypatch):
    monkeypatch.setattr("cvt.training.defaults.may_gain_from_bf16", lambda device: True)
    assert derive(TrainConfig(), PHOTOS, CPU).precision == "auto"
    assert derive(TrainConfig(precision="bf16"), PHOTOS, CPU).precision == "bf16"


def test_what_nobody_asked_for_is_plain():
    config = derive(TrainConfig(), PHOTOS, GPU)
    assert (config.optim.opt, config.optim.momentum, config.optim.layer_decay) == ("adamw", 0.9, 1)
    assert (config.ema_decay, config.augment.repeats, config.mix.loss) == (0, 1, "ce")
    assert config.updates is None


@pytest.mark.parametrize(("batch_size", "accum_steps"), [(512, 1), (512, 8), (2048, 1), (48, 3)])
def test_the_learning_rate_follows_the_global_batch_alone(batch_size, accum_steps):
    given = TrainConfig(
        batch_size=batch_size, accum_steps=accum_steps, optim=OptimConfig(base_lr=5e-4)
    )
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
    config = derive(TrainConfig(updates=updates, batch_size=batch_size), CIFAR, GPU)
    assert (config.epochs, config.updates) == (epochs, updates)
    assert derive(config, CIFAR, GPU) == config


def test_epochs_and_updates_may_not_contradict_each_other():
    with pytest.raises(UserError, match="Got epochs 9 and updates 450, which end in epoch 1; give"):
        derive(TrainConfig(epochs=9, updates=450, batch_size=100), CIFAR, GPU)


def test_freezing_a_fresh_backbone_is_a_mistake():
    with pytest.raises(UserError, match="Got freeze backbone without weights to keep"):
        derive(TrainConfig(freeze="backbone"), PHOTOS, CPU)
    given = TrainConfig(freeze="backbone", weights="w")
    assert derive(given, PHOTOS, CPU, START).freeze == "backbone"
    assert derive(TrainConfig(freeze="bn"), PHOTOS, CPU).freeze == "bn"


def test_workers_share_the_cores_with_the_processes_beside(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(24)), raising=False)
    assert derive(TrainConfig(), PHOTOS, GPU).num_workers == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert derive(TrainConfig(), PHOTOS, GPU).num_workers == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "48")
    assert derive(TrainConfig(), PHOTOS, GPU).num_workers == 1


def test_fine_tuning_at_384_pixels_uses_pictures_whole():
    at_224 = dataclasses.replace(START, preprocessing=Preprocessing(input_size=(3, 224, 224)))
    whole = Preprocessing(input_size=(3, 384, 384), crop_pct=1.0, crop_mode="squash")
    config = derive(TrainConfig(weights="w", image_size=384), PHOTOS, GPU, at_224)
    assert preprocessing_for(config, 3, at_224) == whole
    config = derive(TrainConfig(weights="w", image_size=288), PHOTOS, GPU, at_224)
    assert preprocessing_for(config, 3, at_224) == Preprocessing(input_size=(3, 288, 288))


def test_preprocessing_of_small_large_and_known():
    small = preprocessing_for(derive(TrainConfig(), CIFAR, CPU), 3, None)
    assert (small.input_size, small.crop_pct, small.mean) == ((3, 32, 32), 1.0, (0.5, 0.5, 0.5))
    large = preprocessing_for(derive(TrainConfig(), PHOTOS, GPU), 3, None)
    assert large == Preprocessing(input_size=(3, 224, 224))
    known = preprocessing_for(derive(TrainConfig(image_size=96), PHOTOS, CPU), 3, START)
    assert known == dataclasses.replace(START.preprocessing, input_size=(3, 96, 96))
    assert preprocessing_for(derive(TrainConfig(), PHOTOS, GPU), 1, START).mean == (0.5,)


def test_a_teacher_fills_in_how_it_teaches():
    """As DeiT's code does it; without a teacher nothing is filled in."""
    hard = DistillConfig(kind="hard", alpha=0.5, tau=1.0)
    taught = derive(TrainConfig(teacher="demo"), CIFAR, CPU)
    assert taught.distill == hard
    assert derive(taught, CIFAR, CPU) == taught
    soft = TrainConfig(teacher="demo", distill=DistillConfig(kind="soft", tau=3.0))
    assert derive(soft, CIFAR, CPU).distill == dataclasses.replace(hard, kind="soft", tau=3.0)
    alone = derive(TrainConfig(), CIFAR, CPU)
    assert alone.distill == DistillConfig()
    for kind in (None, "none"):
        silent = TrainConfig(distill=DistillConfig(kind=kind))
        assert not derive(silent, CIFAR, CPU).is_taught
    with pytest.raises(UserError, match=r"Got distill.alpha 0.3 without a teacher .*--teacher"):
        derive(TrainConfig(distill=DistillConfig(alpha=0.3)), CIFAR, CPU)
