import pytest

from cvt.bench.speed.forms import FORMS, check_forms, read_form
from cvt.bench.speed.plan import Entrant, Pins, read_pins
from cvt.errors import UserError
from cvt.inference.passes import PASSES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cvt_13", ("cvt_13", None, None)),
        ("cvt_31", ("cvt_31", None, None)),
        ("cvt_13:deploy", ("cvt_13", "deploy", None)),
        ("cvt_13:bf16", ("cvt_13", None, "bf16")),
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


def test_pins_hold_and_the_rest_is_a_product():
    found = Pins(model="a", dtype="fp16").entrants(["eager", "deploy"], ["float32", "bf16"])
    assert [each.label for each in found] == ["a:eager:fp16", "a:deploy:fp16"]
    assert len(Pins(model="a").entrants(["eager", "deploy"], ["float32", "bf16"])) == 4


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
    assert (found.form, found.left_out()) == (form, left_out)
    assert found.words.endswith(words)


@pytest.mark.parametrize("text", ["deploy-pack", "eager-without-pack", "deploy-upto-a-b", "deploy-",
                                  "deploy-without-", "deploy-upto-", "without-pack"])  # fmt: skip
def test_what_is_no_form(text):
    assert read_form(text) is None
    with pytest.raises(UserError, match="deploy-without-PASS"):
        check_forms(["deploy", text])


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
    made = {f for f in FORMS if Entrant(model="a", form=f, dtype="int8").can_be_made}
    assert made == {"deploy", "deploy-compile", "deploy-compile-graphs", "openvino"}
