"""The rewritten graph in OpenVINO: equal outputs, any shape, the model's own call, and refusals."""

import copy
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

import cvt
import networks
from cvt.errors import UserError
from cvt.inference.openvino import Graph, converted, core
from processors import pretend_cpu
from randomise import randomise

pytest.importorskip("openvino")

# One block, since tracing takes its time: a class token, and strided keys and values.
TINY = cvt.BackboneSpec(
    stages=(
        cvt.StageSpec(
            embed_dim=16, depth=1, num_heads=2, cls_token=True, embed_kernel=7, embed_stride=4
        ),
    ),
    num_classes=5,
    img_size=32,
)


@pytest.fixture(scope="module")
def model():
    return randomise(cvt.Backbone(TINY))


@pytest.fixture(scope="module")
def deployed(model):
    made = cvt.deploy(model, engine="openvino")
    (graph,) = made.graphs
    assert graph.bounds == ((1, None), (3, 3), (32, 32), (32, 32))
    return made


def images(batch, height=32, width=32, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def expected_of(model, batch):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(batch)


def assert_same(got, expected):
    """Equal to float rounding, relative to a scale of at least 1."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    "shape", [(1, 32, 32), (3, 32, 32), (2, 17, 40), (1, 41, 23), (2, 8, 8), (0, 32, 32)]
)
def test_outputs_are_equal_at_any_batch_and_size(model, deployed, shape):
    """A grid of one token is below what was traced, and traced by itself."""
    batch = images(*shape)
    if not len(batch):
        assert deployed(batch).shape == (0, 5)
        return
    assert_same(deployed(batch), expected_of(model, batch))


def test_one_graph_serves_all_sizes_and_few_programs_are_kept(model, deployed):
    """It takes the place of the first one, which was of one size."""
    deployed(images(1, 33))
    graphs = len(deployed.graphs)
    assert [graph.takes((5, 3, 32, 99)) for graph in deployed.graphs].count(True) == 1
    assert [graph.takes((5, 3, 32, 32)) for graph in deployed.graphs].count(True) == 1
    for size in range(32, 38):
        assert_same(deployed(images(1, size)), expected_of(model, images(1, size)))
    assert len(deployed.graphs) == graphs
    assert [shape[2] for shape in deployed._programs] == [34, 35, 36, 37]
    deployed(images(1, 34))
    deployed(images(1, 32))
    assert [shape[2] for shape in deployed._programs] == [36, 37, 34, 32]


def test_an_answer_stays_when_the_next_one_comes(model, deployed):
    first = deployed(images(1))
    kept = first.clone()
    deployed(images(1, seed=1))
    assert torch.equal(first, kept)
    first.add_(1)
    assert torch.equal(deployed(images(1)), kept)


def test_images_in_any_layout_and_type(model, deployed):
    batch = images(2)
    expected = expected_of(model, batch)
    assert_same(deployed(batch.to(memory_format=torch.channels_last)), expected)
    assert_same(deployed(batch.requires_grad_()), expected)
    assert deployed(batch.double()).dtype == torch.float64


def test_calls_from_several_threads_do_not_mix(model, deployed):
    batches = [images(1, seed=seed) for seed in range(4)]
    found = {}

    def work(number):
        for _ in range(10):
            found.setdefault(number, []).append(deployed(batches[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, batch in enumerate(batches):
        expected = expected_of(model, batch)
        for got in found[number]:
            assert_same(got, expected)


def test_it_is_copied_and_pickled_and_says_what_it_is(model, deployed):
    batch = images(1)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other(batch), deployed(batch))
    assert "Backbone in OpenVINO's f32, 1 threads" in repr(deployed)
    assert (deployed.num_classes, deployed.spec) == (5, TINY)
    assert not any(module.training for module in deployed.train().modules())


@pytest.mark.slow
def test_position_tables_are_interpolated_in_the_graph_of_all_sizes():
    model = networks.small("vit_small_patch16_224", embed_dim=24, num_heads=2, depth=1)
    deployed = cvt.deploy(model, engine="openvino")
    assert [graph.bounds for graph in deployed.graphs] == [
        ((1, None), (3, 3), (224,) * 2, (224,) * 2)
    ]
    for size in ((64, 64), (48, 80)):
        assert_same(deployed(images(1, *size)), expected_of(model, images(1, *size)))
    (graph,) = deployed.graphs
    assert graph.takes((5, 3, 224, 224))
    assert not graph.takes((1, 4, 64, 64))


@pytest.mark.parametrize(
    ("bounds", "covered"),
    [
        (((1, None), (3, 3), (32, 32)), True),
        (((1, 8), (3, 3), (40, None)), True),
        (((1, None), (3, 3), (8, 40)), False),
        (((1, None), (4, 4), (32, 32)), False),
    ],
)
def test_which_graph_takes_the_place_of_which(bounds, covered):
    assert Graph(None, ((1, None), (3, 3), (9, None))).covers(Graph(None, bounds)) == covered
    assert not Graph(None, ((1, 4), (3, 3), (9, None))).covers(Graph(None, bounds))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"device": "cuda"}, "runs on the CPU"),
        (
            {"dtype": "float64"},
            "float64 with engine 'openvino', expected float32, bf16 or int8",
        ),
        ({"dtype": "flot32"}, "Did you mean 'float32'"),
        ({"calibration": images(1)}, "with int8 alone"),
    ],
)
def test_what_there_is_not_is_refused(model, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        cvt.deploy(model, engine="openvino", **wrong)


def test_bf16_needs_the_instructions(model, monkeypatch):
    pretend_cpu(monkeypatch, "avx512_f")
    for kind in (model, copy.deepcopy(model).bfloat16()):
        with pytest.raises(UserError, match="this CPU has no instructions"):
            cvt.deploy(kind, dtype="bf16", engine="openvino")


def test_the_precision_is_asked_for_by_name(model, deployed, monkeypatch):
    """Left alone, OpenVINO takes bfloat16 where the CPU has it; the graph is the same for all."""
    pretend_cpu(monkeypatch, "avx512_bf16")
    monkeypatch.setattr("cvt.inference.openvino.to_graph", lambda *_, **__: deployed.graphs[0])
    deployed(images(1))
    program = deployed._programs[1, 3, 32, 32]
    assert program.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert program.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    assert cvt.deploy(model, dtype="bf16", engine="openvino").precision == "bf16"
    in_bf16 = copy.deepcopy(model).bfloat16()
    assert cvt.deploy(in_bf16, engine="openvino").precision == "bf16"


def test_without_the_package_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'cvt\[openvino\]'"):
        cvt.deploy(model, engine="openvino")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (torch.zeros(3, 32, 32), r"expected \(batch, 3, height, width\)"),
        (torch.zeros(1, 4, 32, 32), r"expected \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "normalise"),
        (torch.zeros(1, 3, 32, 32, device="meta"), "expected them on the CPU"),
    ],
)
def test_wrong_images_are_refused_as_by_the_model(deployed, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        deployed(wrong)


def test_signals_arrive_when_deployed_networks_have_come_and_gone():
    """As they did not with a core for each; faulthandler has a signal stack, as pytest's has."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _COME_AND_GONE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "pressed\n"), done.stderr


_COME_AND_GONE = """
import copy, os, signal
import torch
import cvt

stage = cvt.StageSpec(embed_dim=8, depth=1, num_heads=1, cls_token=True)
spec = cvt.BackboneSpec(stages=(stage,), num_classes=3)
image = torch.zeros(1, 3, 32, 32)
first = cvt.deploy(cvt.Backbone(spec).eval(), engine="openvino")
second = copy.deepcopy(first)
first(image), second(image)
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("pressed"))
os.kill(os.getpid(), signal.SIGINT)
"""


class Table(torch.nn.Module):
    """A map of 8x6, on the grid of whatever comes in."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.randn(1, 4, 8, 6, generator=generator))

    def forward(self, fmap):
        return fmap + F.interpolate(self.table, fmap.shape[2:], mode="bicubic", antialias=True)


@pytest.fixture(scope="module")
def compiled_table():
    free = {2: Dim("height", min=2), 3: Dim("width", min=2)}
    example = torch.zeros(1, 4, 8, 9)
    program = torch.export.export(Table(), (example,), dynamic_shapes=(free,), strict=False)
    return core().compile_model(converted(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("grid", [(8, 6), (3, 2), (5, 11), (16, 12), (23, 40)])
def test_position_tables_are_interpolated_to_any_grid_as_by_torch(compiled_table, grid):
    fmap = torch.zeros(1, 4, *grid)
    got = torch.from_numpy(compiled_table(fmap.numpy())[0])
    torch.testing.assert_close(got, Table()(fmap), atol=1e-5, rtol=0)
