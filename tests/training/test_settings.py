from dataclasses import fields, replace

from cvt.training.config import DistillConfig, TrainConfig
from cvt.training.screen import flat, settings
from trained import config_of

CONFIG = config_of(
    data="torch/cifar10",
    model="cvt_mini_32",
    model_args={"kv_stride": 1, "depth": [1, 2, 4]},
    epochs=300,
    batch_size=256,
    num_workers=0,
    optim={
        "base_lr": 1e-3,
        "min_lr": 5e-6,
        "weight_decay": 0.0,
        "warmup_epochs": 0,
        "clip_grad": 0,
    },
    augment={"crop": "pad", "scale": (0.1, 1.0), "hflip": 0.5},
    mix={"mixup": 0.2},
)


def test_values_in_use_come_with_what_they_were_derived_from():
    lines = settings(CONFIG)
    assert lines["model"] == "cvt_mini_32, model_args kv_stride=1 depth=[1, 2, 4]"
    assert "batch_size 256, image_size 16, seed 0" in lines["length"]
    assert lines["optim"] == (
        "opt adamw, lr 0.0005 = 0.001 * 256 / 512, min_lr 5e-06; "
        "off: weight_decay, warmup_epochs, clip_grad"
    )
    assert lines["mix"] == "mixup 0.2, smoothing 0.1, loss ce; off: cutmix"
    assert "num_workers 0" in lines["machine"]


def test_what_nothing_reads_is_not_said():
    lines = settings(CONFIG)
    assert lines["augment"] == "crop pad, hflip 0.5; off: color_jitter, auto_augment, re_prob"
    assert "momentum" not in lines["optim"]
    assert "parallel" not in lines["machine"]
    assert "compile" not in lines["machine"]
    cropped = replace(CONFIG, augment=replace(CONFIG.augment, crop="random_resized", re_prob=0.25))
    assert "scale [0.1, 1]" in settings(cropped)["augment"]
    assert "re_mode pixel" in settings(cropped)["augment"]


def test_a_rate_that_was_given_is_not_said_to_be_derived():
    given = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.25))
    assert "lr 0.25, " in settings(given)["optim"]


def test_several_processes_and_steps_share_the_batch():
    shared = replace(CONFIG, accum_steps=4, compile=True, sync_bn=True)
    lines = settings(shared, processes=2)
    assert "batch_size 256 = 2 processes * 4 steps * 32 images" in lines["length"]
    assert "parallel ddp, num_workers 0, compile, sync_bn" in lines["machine"]


def test_no_field_gets_lost():
    """Whatever is switched on is said, fields that are yet to be added included."""
    usual = config_of()
    lines = "\n".join(settings(usual, processes=2).values())
    for each in fields(TrainConfig):
        value = getattr(usual, each.name)
        if isinstance(value, int | float | str) and value not in (0, False, "none", "digits"):
            assert each.name in lines or each.name == "accum_steps" or str(value) in lines
    on = {
        each.name: True
        for each in fields(TrainConfig)
        if getattr(usual, each.name) is False and each.name not in ("force", "download")
    }
    lines = "\n".join(settings(replace(usual, **on), processes=2).values())
    assert [name for name in on if name not in lines] == []


def test_a_teacher_is_said_with_what_is_read_of_it():
    hard = DistillConfig(kind="hard", alpha=0.5, tau=1.0)
    taught = replace(CONFIG, teacher="timm/resnet18", teacher_args={"in_chans": 1}, distill=hard)
    lines = settings(taught)
    assert lines["teacher"] == "timm/resnet18, teacher_args in_chans=1"
    assert lines["distill"] == "kind hard, alpha 0.5"
    soft = replace(taught, distill=replace(hard, kind="soft"))
    assert settings(soft)["distill"] == "kind soft, alpha 0.5, tau 1"
    for alone in (CONFIG, replace(taught, distill=replace(hard, kind="none"))):
        assert not {"teacher", "distill"} & settings(alone).keys()


def test_flat_names_are_those_of_the_command_line():
    plain = flat(CONFIG.to_dict())
    assert plain["optim.base_lr"] == 1e-3
    assert plain["model_args"] == {"kv_stride": 1, "depth": [1, 2, 4]}
    assert not {"optim", "augment", "mix"} & set(plain)
