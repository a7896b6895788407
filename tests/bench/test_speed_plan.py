import shlex

import pytest

from cvt.bench.speed.plan import BenchConfig, make_plan, make_settings
from cvt.errors import UserError


def plan_of(*models, **changes):
    return make_plan(BenchConfig(models=models, **changes))


def bases_of(plan):
    return {each.label: plan.bases[each].label for each in plan.entrants}


def test_everything_is_measured_in_every_form_and_dtype_once():
    plan = plan_of("cvt_13", "hf/cvt_13:eager", "cvt_13:deploy", forms=("eager", "deploy"),
                   dtypes=("float32", "bf16"))  # fmt: skip
    assert [each.label for each in plan.entrants] == [
        "cvt_13:eager:float32", "cvt_13:eager:bf16", "cvt_13:deploy:float32", "cvt_13:deploy:bf16",
        "hf/cvt_13:eager:float32", "hf/cvt_13:eager:bf16",
    ]  # fmt: skip
    assert set(bases_of(plan).values()) == {"cvt_13:eager:float32"}
    assert plan.base_words == "cvt_13:eager:float32"


def test_a_base_without_dtype_is_that_of_ones_own():
    plan = plan_of("cvt_13:deploy", "hf/cvt_13:eager", dtypes=("float32", "bf16"), base="hf/cvt_13")
    assert bases_of(plan) == {
        "cvt_13:deploy:float32": "hf/cvt_13:eager:float32",
        "cvt_13:deploy:bf16": "hf/cvt_13:eager:bf16",
        "hf/cvt_13:eager:float32": "hf/cvt_13:eager:float32",
        "hf/cvt_13:eager:bf16": "hf/cvt_13:eager:bf16",
    }
    assert plan.base_words == "hf/cvt_13:eager in the same dtype"


def test_a_base_measured_in_one_dtype_holds_for_all():
    plan = plan_of("cvt_13", "hf/cvt_13:float32", dtypes=("bf16", "float32"), base="hf/cvt_13")
    assert set(bases_of(plan).values()) == {"hf/cvt_13:eager:float32"}


def test_a_base_that_is_not_named_is_measured_too():
    plan = plan_of("cvt_13", forms=("deploy",), base="hf/cvt_13")
    assert [each.label for each in plan.entrants] == [
        "hf/cvt_13:eager:float32", "cvt_13:deploy:float32"
    ]  # fmt: skip
    assert set(bases_of(plan).values()) == {"hf/cvt_13:eager:float32"}


def test_int8_is_held_against_float32_where_the_base_has_no_int8():
    plan = plan_of("cvt_13:deploy:float32", "cvt_13:openvino:int8", base="hf/cvt_13",
                   calibration="pictures")  # fmt: skip
    assert set(bases_of(plan).values()) == {"hf/cvt_13:eager:float32"}
    own = plan_of("cvt_13:openvino:int8", "cvt_13:deploy:int8", calibration="pictures")
    assert set(bases_of(own).values()) == {"cvt_13:openvino:int8"}


def test_settings_are_a_product_and_training_has_those_that_can():
    config = BenchConfig(models=("cvt_13",), forms=("eager", "deploy"), batch_sizes=(1, 16),
                         tasks=("inference", "training"), image_sizes=(224, 384))  # fmt: skip
    settings = make_settings(config, {"devices": ["cpu"], "threads": [1, 2]})
    assert len(set(settings)) == len(settings) == 16
    assert settings[0].words == "inference, batch 1, 224x224 pixels, cpu, 1 thread"
    plan = make_plan(config)
    assert [each.form for each in plan.entrants_of("inference")] == ["eager", "deploy"]
    assert [each.form for each in plan.entrants_of("training")] == ["eager"]


def test_the_folder_is_one_for_each_bench_and_rounds_are_no_other():
    one = BenchConfig(models=("hf/cvt_13", "cvt_13"))
    assert one.folder.name.startswith("bench-hf_cvt_13-cvt_13-")
    assert BenchConfig(models=("hf/cvt_13", "cvt_13"), repeats=9).folder == one.folder
    for changes in (
        {"seconds": 3.0},
        {"base": "cvt_13"},
        {"threads": (1,)},
        {"forms": ("deploy",)},
        {"dtypes": ("bf16",), "calibration": "pictures"},
    ):
        assert BenchConfig(models=("hf/cvt_13", "cvt_13"), **changes).folder != one.folder


def test_the_command_is_one_that_can_be_typed(tmp_path):
    config = BenchConfig(models=("cvt_13", "cvt_nano_32+kv_stride=[1,2,2]"), batch_sizes=(1, 16),
                         base="cvt_13", out=tmp_path / "a folder")  # fmt: skip
    words = shlex.split(config.command)
    assert words[:4] == ["cvt", "bench", "cvt_13", "cvt_nano_32+kv_stride=[1,2,2]"]
    assert words[words.index("--batch-size") + 1] == "1,16"
    assert words[words.index("--out") + 1] == str(tmp_path / "a folder")
    assert "--threads" not in words


@pytest.mark.parametrize(
    ("models", "changes", "words"),
    [
        ((), {}, "no model"),
        (("cvt_14",), {}, "Did you mean 'cvt_13'"),
        (("hf/cvt_14",), {}, "Did you mean 'hf/cvt_13'"),
        (("hf/deit_tiny_patch16_224",), {}, "There are hf/cvt_13, hf/cvt_21, hf/cvt_w24."),
        (("cvt_13+kv_strid=1",), {}, "kv_stride"),
        (("cvt_13",), {"forms": ("eager", "deplyo")}, "Did you mean 'deploy'"),
        (("cvt_13",), {"dtypes": ("bf61",)}, "Did you mean 'bf16'"),
        (("cvt_13",), {"tasks": ("trainig",)}, "Did you mean 'training'"),
        (("cvt_13",), {"batch_sizes": (16, 0)}, "batch size 0"),
        (("cvt_13",), {"image_sizes": (-1,)}, "image size -1"),
        (("cvt_13",), {"threads": (0,)}, "threads 0"),
        (("cvt_13",), {"repeats": 0}, "repeats 0"),
        (("cvt_13",), {"seconds": 0.0}, "seconds 0"),
        (("cvt_13",), {"seconds": float("nan")}, "seconds nan"),
        (("cvt_13",), {"base": "cvt_14"}, "Did you mean 'cvt_13'"),
        (("cvt_13:deploy",), {"tasks": ("training",)}, "for training.*eager, autocast, compile"),
        (("cvt_13",), {"forms": ("deploy-compiel",)}, "Did you mean 'deploy-compile'"),
        (("cvt_13:openvino:int8",), {}, "cvt_13:openvino:int8 without pictures.*--calibration"),
        (("cvt_13:eager:int8",), {"calibration": "a"}, "forms deploy, deploy-compile, .*openvino"),
        (("cvt_13:deploy",), {"base": "cvt_13:eager:int8", "calibration": "a"}, "eager:int8, but"),
        (("cvt_13:deploy",), {"calibration": "a"}, "float32 alone"),
        (("cvt_13:deploy:int8",), {"tasks": ("training",), "calibration": "a"}, "for training"),
        (("lost.safetensors",), {}, "no file lost.safetensors"),
        (("cvt_13:deploy", "cvt_13"), {"tasks": ("inference", "training")}, "another --base"),
    ],
)
def test_mistakes(models, changes, words):
    with pytest.raises(UserError, match=words):
        plan_of(*models, **changes)
