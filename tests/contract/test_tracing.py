"""Traces: torch.jit.trace and what stands on it, the old ONNX exporter above all.

A traced graph holds for other sizes than the example's, or fails at them; it is never wrong.
"""

import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import torch

import cvt
from networks import NAMES, changes_of, image, small
from randomise import randomise

# The tracer is deprecated, and says so; what it says of our own code would fail.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning"),
]

# timm's way to resize ViT's tables, which the old exporter cannot.
ANTIALIASED = ("vit_small_patch16_224", "deit_nano_32", "tnt_nano_32")


def sizes_of(name: str) -> list[tuple[int, int]]:
    unit = 1 if name.endswith("_32") else 4
    return [(32 * unit, 32 * unit), (24 * unit, 40 * unit), (40 * unit, 24 * unit)]


def at_own_size(name: str):
    """A small network whose position tables are made for the first of its sizes."""
    changes = {**changes_of(name), "img_size": sizes_of(name)[0]}
    return randomise(cvt.create_model(name, **changes)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_passes_its_own_check_and_holds_for_other_sizes(name):
    model = small(name).eval()
    example, *others = sizes_of(name)
    traced = torch.jit.trace(model, image(name, 2, example))
    with torch.no_grad():
        for batch, size in ((1, example), *((3, other) for other in others)):
            images = image(name, batch, size, seed=1)
            assert torch.equal(traced(images), model(images))


def test_quick_gelu_is_one_graph_with_gradients_and_without():
    model = small("cvt_nano_32").eval()
    graphs = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            traced = torch.jit.trace(model, image("cvt_nano_32"), check_trace=False)
        graphs.append(sorted(node.kind() for node in traced.inlined_graph.nodes()))
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("wrap", [False, True], ids=["alone", "within"])
def test_scripting_is_refused_in_a_sentence(wrap):
    for name in ("cvt_nano_32", "tnt_nano_32"):
        model = small(name, features_only=wrap)
        with pytest.raises(cvt.UserError, match=r"torch\.jit\.script .* torch\.jit\.trace"):
            torch.jit.script(model)


def run_of_old_onnx(model, images, path):
    """The old exporter's file with free batch, height and width, as a function."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        # Among them its word that shapes are constant where it cannot follow them.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["output"],
            dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}},
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


@pytest.mark.parametrize("name", [each for each in NAMES if each not in ANTIALIASED])
def test_the_old_onnx_exporter_frees_every_size(name, tmp_path):
    model = at_own_size(name)
    example, *others = sizes_of(name)
    run = run_of_old_onnx(model, image(name, 2, example), tmp_path / "a.onnx")
    with torch.no_grad():
        for batch, size in ((1, example), *((3, other) for other in others)):
            images = image(name, batch, size, seed=1)
            # float32 on either side, through some 70 roundings of 6e-8; logits are near 1.
            torch.testing.assert_close(run(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ANTIALIASED)
def test_the_old_onnx_exporter_keeps_a_table_at_its_size(name, tmp_path):
    """Elsewhere the file fails: also where a grid of another shape has as many tokens."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = at_own_size(name)
    own, other, _ = sizes_of(name)
    as_many = own[0] // 2, own[1] * 2
    run = run_of_old_onnx(model, image(name, 2, own), tmp_path / "a.onnx")
    with torch.no_grad():
        for batch in (1, 3):
            images = image(name, batch, own, seed=1)
            torch.testing.assert_close(run(images), model(images), rtol=1e-4, atol=1e-5)
    patch = 16 if name == "vit_small_patch16_224" else 4
    for size in (other, as_many, (patch, own[1]), (own[0], patch)):
        with pytest.raises(Exception) as raised:  # noqa: PT011  (its classes are hidden)
            run(image(name, 2, size))
        assert type(raised.value).__module__.startswith(onnxruntime.__name__)


def test_the_old_onnx_exporter_at_another_size_says_what_to_do(tmp_path):
    name = "deit_nano_32"
    model = at_own_size(name)
    _, other, _ = sizes_of(name)
    with pytest.raises(cvt.UserError, match=r"6x10 tokens .* 8x8.* set_input_size"):
        run_of_old_onnx(model, image(name, 2, other), tmp_path / "a.onnx")
    model.set_input_size(other)
    images = image(name, 2, other)
    with torch.no_grad():
        run = run_of_old_onnx(model, images, tmp_path / "a.onnx")
        torch.testing.assert_close(run(images), model(images), rtol=1e-4, atol=1e-5)


def test_openvino_converts_a_model_by_itself():
    openvino = pytest.importorskip("openvino")
    model = small("cvt_nano_32").eval()
    images = image("cvt_nano_32", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(model, example_input=images)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(graph, "CPU", exact)
    with torch.no_grad():
        for size in ((16, 16), (24, 20)):
            images = image("cvt_nano_32", 1, size, seed=1)
            found = torch.from_numpy(compiled(images.numpy())[0])
            torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


def test_tensorboard_draws_the_graph(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(small("cvt_nano_32").eval(), image("cvt_nano_32"))
    (events,) = tmp_path.iterdir()
    assert b"stages" in events.read_bytes()
