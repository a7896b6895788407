"""From the command line's words to what is measured."""

import shlex
import subprocess
import sys

import pytest

from cvt.bench.speed import BenchConfig, Entrant, make_plan, make_settings
from cvt.bench.speed.forms import FORMS, find_form, read_form
from cvt.bench.speed.plan import read_pins
from cvt.errors import UserError
from cvt.inference import PASSES


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


def test_number_formats_have_long_names_too():
    long = BenchConfig(models=("cvt_13",), dtypes=("bfloat16", "fp32", "bf16"))
    assert long.dtypes == ("bf16", "float32")
    assert long.folder == BenchConfig(models=("cvt_13",), dtypes=("bf16", "float32")).folder


def test_pins_hold_and_the_rest_is_a_product():
    plan = plan_of("cvt_13:fp16", "cvt_21", forms=("eager", "deploy"), dtypes=("float32", "bf16"))
    assert [each.label for each in plan.entrants] == [
        "cvt_13:eager:fp16", "cvt_13:deploy:fp16", "cvt_21:eager:float32", "cvt_21:eager:bf16",
        "cvt_21:deploy:float32", "cvt_21:deploy:bf16",
    ]  # fmt: skip


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
                   calibration="photos")  # fmt: skip
    assert set(bases_of(plan).values()) == {"hf/cvt_13:eager:float32"}
    own = plan_of("cvt_13:openvino:int8", "cvt_13:deploy:int8", calibration="photos")
    assert set(bases_of(own).values()) == {"cvt_13:openvino:int8"}


def test_settings_are_a_product_and_training_has_those_that_can():
    config = BenchConfig(models=("cvt_13",), forms=("eager", "deploy"), batch_sizes=(1, 16),
                         tasks=("inference", "training"), image_sizes=(224, 384))  # fmt: skip
    settings = make_settings(config, ["cpu"], [1, 2])
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
        {"dtypes": ("bf16",), "calibration": "photos"},
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
        (("cvt_13:openvino:int8",), {}, "cvt_13:openvino:int8 without images.*--calibration"),
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


def test_a_mistake_is_told_before_models_can_be_built():
    code = (
        "import sys\nfrom cvt.bench.speed import BenchConfig, make_plan\n"
        "make_plan(BenchConfig(models=('cvt_13:deploy-without-pack', 'hf/cvt_13:bf16')))\n"
        "print([m for m in ('timm', 'transformers', 'openvino') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- Names: of models with what they are pinned to, and of forms.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cvt_13", ("cvt_13", None, None)),
        ("cvt_31", ("cvt_31", None, None)),
        ("cvt_13:deploy", ("cvt_13", "deploy", None)),
        ("cvt_13:bf16", ("cvt_13", None, "bf16")),
        ("cvt_13:bfloat16", ("cvt_13", None, "bf16")),
        ("mine:make:eager:fp32", ("mine:make", "eager", "float32")),
        ("hf/cvt_13:eager:float32", ("hf/cvt_13", "eager", "float32")),
        ("cvt_13+kv_stride=[1,2,2]:compile", ("cvt_13+kv_stride=[1,2,2]", "compile", None)),
        ("mine.nets:make", ("mine.nets:make", None, None)),
        ("mine:make:openvino:fp16", ("mine:make", "openvino", "fp16")),
        ("mine:make:bf16", ("mine:make", None, "bf16")),
        ("cvt_13:deploy-compile", ("cvt_13", "deploy-compile", None)),
        ("cvt_13:deploy-without-pack-a:fp16", ("cvt_13", "deploy-without-pack-a", "fp16")),
        ("mine:make:deploy-without-all", ("mine:make", "deploy-without-all", None)),
        ("demo:openvino:int8", ("demo", "openvino", "int8")),
        ("weights.safetensors:bf16", ("weights.safetensors", None, "bf16")),
    ],
)  # fmt: skip
def test_names_are_read_with_what_they_are_pinned_to(text, expected):
    pins = read_pins(text)
    assert (pins.model, pins.form, pins.dtype) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cvt_13:depoly", "Did you mean 'deploy'"),
        ("cvt_13:depoly-without-pack", "Did you mean 'deploy'"),
        ("demo:openvin:int8", "Did you mean 'openvino'"),
        ("cvt_13:eager-without-pack", "NAME:FORM:DTYPE"),
        ("cvt_13:deploy-without-", "NAME:FORM:DTYPE"),
        ("timm/resnet18:eager:float23", "Did you mean 'float32'"),
        ("cvt_13:bf16:deploy", "NAME:FORM:DTYPE"),
        ("mine:make:compiel", "Did you mean 'compile'"),
        ("mine:", "NAME:FORM:DTYPE"),
        (":make", "NAME:FORM:DTYPE"),
        ("", "NAME:FORM:DTYPE"),
    ],
)
def test_mistakes_in_names(text, words):
    with pytest.raises(UserError, match=words):
        read_pins(text)


def test_every_form_infers_and_some_can_be_trained():
    can_train = {
        form for form in FORMS if Entrant(model="a", form=form, dtype="float32").can("training")
    }
    assert can_train == {"eager", "autocast", "compile"}
    assert all(form.words and not form.words.endswith(".") for form in FORMS.values())


@pytest.mark.parametrize(
    ("text", "form", "left_out", "words"),
    [
        ("deploy", "deploy", (), "in PyTorch"),
        ("deploy-compile", "deploy-compile", (), "over cvt.deploy (but for its pass pack)"),
        ("deploy-without-pack", "deploy", ("pack",), "without its passes pack"),
        ("deploy-compile-without-pack-slices", "deploy-compile", ("pack", "slices"),
         "without its passes pack, slices"),
        ("openvino-without-all", "openvino", PASSES, "without any of its passes"),
        ("deploy-upto-batchnorm", "deploy", PASSES[1:], "with the passes up to batchnorm only"),
        (f"deploy-upto-{PASSES[-1]}", "deploy", (), "only"),
    ],
)  # fmt: skip
def test_forms_without_passes(text, form, left_out, words):
    found = read_form(text)
    assert found.infer is FORMS[form].infer
    assert found.left_out() == left_out
    assert found.words.endswith(words)


@pytest.mark.parametrize("text", ["deploy-pack", "eager-without-pack", "deploy-upto-a-b", "deploy-",
                                  "deploy-without-", "deploy-upto-", "without-pack"])  # fmt: skip
def test_what_is_no_form(text):
    assert find_form(text) is None
    with pytest.raises(UserError, match="deploy-without-PASS"):
        read_form(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deploy-without-pakc", "Did you mean 'pack'"),
        ("deploy-without-pack-slises", "Did you mean 'slices'"),
        ("deploy-upto-batchnrom", "Did you mean 'batchnorm'"),
        ("deploy-without-all-pack", "all by itself"),
        ("deploy-upto-all", "Got the pass 'all'"),
    ],
)
def test_passes_that_are_none(text, words):
    with pytest.raises(UserError, match=words):
        read_form(text).left_out()


def test_passes_have_names_that_forms_can_be_made_of():
    assert not [name for name in PASSES if "-" in name or ":" in name or name == "all"]


def test_int8_is_of_deployed_forms():
    made = {name for name, form in FORMS.items() if form.has_passes}
    assert made == {"deploy", "deploy-compile", "deploy-compile-graphs", "openvino"}
