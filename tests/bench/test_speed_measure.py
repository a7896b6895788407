"""Single measurements, in this process, of networks that take milliseconds."""

import copy
import dataclasses
import sys

import pytest
import torch
from torch import nn

from cvt import inference
from cvt.bench.speed import Measurement
from cvt.bench.speed.forms import FORMS, Ready, Wish
from cvt.bench.speed.measure import (
    MemoryMeter,
    judge,
    logits_of,
    matrix_gflops,
    measure,
    median_seconds,
    packed_product,
    timed,
    torch_product,
)
from cvt.bench.speed.models import build
from cvt.errors import UserError
from cvt.inference import PASSES, Calibration, calibration_images
from processors import pretend_cpu

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """`quick(form="deploy")`: the measurement of a small network."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")

    def call(calibration=None, make=build, **changes):
        usual = {"model": "cvt_nano_32", "form": "eager", "dtype": "float32", "task": "inference",
                 "device": "cpu", "threads": 1, "image_size": 32, "batch_size": 2,
                 "round": 1}  # fmt: skip
        return measure(
            Measurement(**{**usual, **changes}),
            seconds=0.01,
            cache=str(tmp_path),
            calibration=calibration,
            make=make,
            peak=lambda device, dtype: 100.0,
        )

    return call


@pytest.mark.parametrize("form", ["eager", "autocast", "deploy"])
def test_inference(quick, form):
    found = quick(form=form)
    assert found.calls >= 3
    assert found.images_per_s > 0
    assert found.first_call_s > 0
    assert found.peak_gflops == 100
    assert 0 <= found.memory_mb < 500


@pytest.mark.parametrize("model", ["cvt_nano_32", "deit_nano_32"])
def test_training(quick, model):
    found = quick(model=model, task="training", batch_size=3, image_size=48)
    assert found.images_per_s > 0


@pytest.mark.parametrize(
    ("form", "left_out"),
    [
        ("deploy-without-pack-slices", {"pack", "slices"}),
        ("deploy-without-all", set(PASSES)),
        ("openvino-upto-batchnorm", set(PASSES) - {"batchnorm"}),
        ("deploy-compile-without-slices", {"pack", "slices"}),  # packed weights don't compile
    ],
)
def test_passes_are_left_out(quick, monkeypatch, form, left_out):
    seen = []

    def deploy(model, *, without, engine, **more):
        seen.append((engine, set(without)))
        return model

    monkeypatch.setattr(inference, "deploy", deploy)
    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    quick(form=form)
    assert seen == [("openvino" if form.startswith("openvino") else "torch", left_out)]


def test_compiling_is_over_the_deployed_form(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: seen.append((model, mode)))
    model = build("cvt_nano_32", 32).eval()
    wish = Wish(dtype=torch.float32, device=CPU)
    for form in ("compile", "compile-graphs", "deploy-compile", "deploy-compile-graphs"):
        FORMS[form].infer(model, wish)
    assert [(type(each).__name__, mode) for each, mode in seen] == [
        ("Backbone", None), ("Backbone", "reduce-overhead"),
        ("Deployed", None), ("Deployed", "reduce-overhead"),
    ]  # fmt: skip


def test_int8_is_judged_on_other_images_than_it_is_calibrated_on(quick, monkeypatch, photos):
    seen = []

    def infer(model, wish):
        seen.append((model, wish.images))
        wrong = copy.deepcopy(model).requires_grad_(False)
        wrong.head.weight.neg_()
        wrong.head.bias.neg_()

        def call(images):
            seen.append((wrong, images))
            return wrong(images)

        return Ready(call=call, dtype=torch.float32)

    entry = dataclasses.replace(FORMS["openvino"], infer=infer)
    monkeypatch.setitem(FORMS, "openvino", entry)
    found = quick(
        model="demo", form="openvino", dtype="int8", image_size=48, calibration=str(photos)
    )
    (model, calibrating), (_, judging) = seen[0], seen[-1]
    assert calibrating.shape == judging.shape == (2, 3, 48, 48)
    preprocessing = dataclasses.replace(model.record.preprocessing, input_size=(3, 48, 48))
    everything = calibration_images(model, Calibration(str(photos)), preprocessing)
    assert torch.equal(everything[0::2], calibrating)
    assert torch.equal(everything[1::2], judging)
    assert (found.agreement, found.judged_on) == (0.0, 2)  # logits of the other sign
    assert found.logit_error > 0.1
    assert found.peak_gflops is None


def test_fresh_weights_are_the_same_in_the_reference(quick, photos):
    found = quick(form="autocast", dtype="bf16", calibration=str(photos))
    assert found.judged_on == 2
    assert 0 < found.logit_error < 0.1
    assert quick(calibration=str(photos)).agreement is None
    theirs = quick(model="timm/test_vit", image_size=160, dtype="bf16", calibration=str(photos))
    assert theirs.agreement is None


def test_judging_takes_batches_of_the_timed_size():
    images, shapes = torch.randn(5, 3, 4, 4), []

    def call(batch):
        shapes.append(len(batch))
        return batch.flatten(1)

    for batch_size in (2, 8):
        ready = Ready(call=call, dtype=torch.float32)
        found = judge(nn.Flatten(), ready, images, batch_size, CPU)
        assert found["agreement"] == 100
        assert found["judged_on"] == min(5, 2 * batch_size)
    assert shapes == [2, 2, 8]


def test_openvino_that_is_not_installed_says_how_to_get_it(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"needs openvino.*pip install 'cvt\[openvino\]'"):
        quick(form="openvino")


def test_a_step_of_training_changes_the_weights(quick):
    made = []

    def built(name, size):
        torch.manual_seed(0)
        made.append(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5), nn.Dropout(0.5)))
        return made[-1]

    quick(task="training", image_size=4, make=built)
    quick(image_size=4, make=built)
    trained, untouched = (each[1].weight for each in made)
    assert (trained - untouched).abs().max() > 0
    assert [each.training for each in made] == [True, False]
    assert trained.grad is not None
    assert untouched.grad is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 9 bytes."
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_is_a_sentence(quick, error):
    def make(name, size):
        raise error

    with pytest.raises(UserError, match=r"^Out of memory: [A-Z].+"):
        quick(make=make)


def test_other_errors_stay_what_they_are(quick):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        quick(make=lambda name, size: nn.Linear(3, 3))


def test_logits_are_found_in_what_models_return():
    from types import SimpleNamespace

    one, two = torch.zeros(2, 3), torch.zeros(2, 4)
    assert logits_of(one) == (one,)
    assert logits_of((one, two)) == (one, two)
    assert logits_of(SimpleNamespace(logits=one)) == (one,)
    for wrong in ({"out": one}, (), torch.zeros(2, 3, 4)):
        with pytest.raises(UserError, match="logits"):
            logits_of(wrong)


def test_weights_are_cast_and_autocast_leaves_them():
    def made(form):
        linear = nn.Linear(4, 4)
        ready = FORMS[form].infer(linear, Wish(dtype=torch.bfloat16, device=CPU))
        answer = ready.call(torch.ones(1, 4, dtype=ready.dtype))
        return linear.weight.dtype, ready.dtype, answer.dtype

    bf16 = torch.bfloat16
    assert made("eager") == (bf16, bf16, bf16)
    assert made("autocast") == (torch.float32, torch.float32, bf16)


def test_training_under_autocast_is_that_of_every_form(quick):
    found = quick(form="autocast", dtype="bf16", task="training", image_size=32)
    assert found.images_per_s > 0


@pytest.mark.parametrize(
    ("form", "dtype", "calibrates"),
    [
        ("openvino", torch.float32, False),
        ("openvino", torch.bfloat16, False),
        ("openvino", torch.int8, True),
        ("deploy", torch.int8, False),  # PyTorch's finds its ranges as it goes
    ],
)
def test_images_to_calibrate_on_are_for_int8_alone(monkeypatch, form, dtype, calibrates):
    told = []
    monkeypatch.setattr(inference, "deploy", lambda model, **rest: told.append(rest))
    images = torch.zeros(2, 3, 4, 4)
    FORMS[form].infer(nn.Identity(), Wish(dtype=dtype, device=CPU, images=images))
    assert (told[0]["calibration"] is images) is calibrates


def test_memory_is_the_peak_above_the_start():
    held = torch.ones(20 * 2**18)  # 20 MB that were there before
    meter = MemoryMeter(CPU)
    big = torch.ones(64 * 2**18)
    del big
    assert 60 < meter.peak_mb() < 90
    meter.forget_peak()
    assert meter.peak_mb() < 30
    assert len(held)


def test_the_median_call_is_timed():
    calls = []
    seconds, count = median_seconds(lambda: calls.append(len(calls)), CPU, 0.0)
    assert (count, len(calls)) == (3, 4)
    assert 0 <= seconds < 1
    assert timed(lambda: None, CPU) >= 0


# --- What the arithmetic is held against.


def test_the_peak_is_that_of_the_faster_product():
    """On AMD's processors with AVX-512 oneDNN's is twice as fast as torch's own."""
    sides = []

    def way(gflops):
        def product(side, device, dtype):
            sides.append(side)
            return lambda: 2 * side**3 / (gflops * 1e9)

        return product

    def clock(product, device):
        return product()

    def peak(*ways):
        return matrix_gflops(CPU, torch.float32, ways, clock)

    assert peak(way(100), way(230)) == pytest.approx(230)
    assert peak(way(230), way(100)) == pytest.approx(230)
    assert peak(way(100), lambda side, device, dtype: None) == pytest.approx(100)
    assert max(sides) == 2048  # 4096 would take more than half a second
    sides.clear()
    assert peak(way(0.01)) == pytest.approx(0.01)
    assert sides == [256]  # where a dtype is imitated


@pytest.mark.parametrize("way", [torch_product, packed_product])
def test_products_multiply(way):
    torch.manual_seed(0)
    product = way(32, CPU, torch.float32)
    if product is None:
        pytest.skip("oneDNN packs no weights here")
    torch.manual_seed(0)
    one, other = torch.randn(32, 32), torch.randn(32, 32)
    expected = one @ (other if way is torch_product else other.T)
    torch.testing.assert_close(product(), expected, rtol=1e-4, atol=1e-4)


def test_a_dtype_that_is_imitated_has_no_packed_product(monkeypatch):
    pretend_cpu(monkeypatch, "avx512_f")
    assert packed_product(8, CPU, torch.bfloat16) is None
    assert packed_product(8, torch.device("meta"), torch.float32) is None
