"""Files in every format, run by their runtimes and held against the model, by us and by export."""

import json
import zipfile

import onnx
import pytest
import torch

import cvt
import networks
from cvt.errors import UserError
from cvt.inference.export.export import export, read_metadata
from cvt.inference.export.formats import FORMATS
from cvt.inference.export.trace import AXES, choose_sizes, trace
from randomise import randomise

CPU = torch.device("cpu")


def tiny(name, **changes):
    return randomise(cvt.create_model(name, **{"depth": 1, **changes})).eval()


def held_against(model, path, format, *shapes):
    """The largest error over images that the check has not seen, relative to the outputs."""
    run = FORMATS[format].module.load(path, CPU)
    errors = []
    with torch.no_grad():
        for seed, shape in enumerate(shapes):
            images = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7))
            expected = model(images)
            assert run(images).dtype == torch.float32
            errors.append(((run(images) - expected).abs().max() / expected.abs().max()).item())
    return max(errors)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("vit_nano_32", ".onnx"),  # a position table, interpolated in the graph
        pytest.param("vit_nano_32", ".xml", marks=pytest.mark.slow),
        pytest.param("cvt_nano_32", ".onnx", marks=pytest.mark.slow),
        pytest.param("cvt_nano_32", ".xml", marks=pytest.mark.slow),
        pytest.param("cvt_nano_32", ".pt2", marks=pytest.mark.slow),
        pytest.param("pvt_nano_32", ".onnx", marks=pytest.mark.slow),
        pytest.param("pvt_nano_32", ".xml", marks=pytest.mark.slow),
        pytest.param("pvt_nano_32", ".pt2", marks=pytest.mark.slow),
        pytest.param("tnt_nano_32", ".onnx", marks=pytest.mark.slow),
        pytest.param("t2t_nano_32", ".xml", marks=pytest.mark.slow),
        pytest.param("cpvt_nano_32", ".onnx", marks=pytest.mark.slow),
        pytest.param("resnet18", ".onnx", marks=pytest.mark.slow),
    ],
)
def test_one_file_for_every_batch_and_size(name, suffix, tmp_path):
    small = {"num_classes": 5} if name == "resnet18" else networks.SMALL.get(name, {"depth": 1})
    model = randomise(cvt.create_model(name, **small)).eval()
    made = export(model, tmp_path / f"a{suffix}", dynamic=AXES)
    sizes = made.metadata.sizes
    assert made.limit == 1e-4
    assert max(check.error for check in made.checks) < 1e-5
    assert {check.size for check in made.checks} > {sizes.usual, (sizes.height[0], sizes.width[0])}
    assert read_metadata(made.path) == made.metadata
    low, (height, width) = sizes.height[0], sizes.usual
    shapes = ((1, 3, low, low + 9), (5, 3, height + 3, width + 6), (2, 3, 2 * height, width))
    assert held_against(model, made.path, made.format, *shapes) < 1e-5
    if suffix == ".onnx":
        assert free_sizes(made.path) == ["batch", 3, "height", "width"]


def free_sizes(path):
    """The shape that ONNX says of the images, free sizes by their names."""
    (image,) = onnx.load(path).graph.input
    return [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]


def test_a_fixed_size_of_its_own(tmp_path):
    """The table is interpolated before the tracing, and the record says the size."""
    model = tiny("vit_nano_32", num_classes=0, in_chans=1)
    made = export(model, tmp_path / "a.pt2", image_size=(48, 40), batch_size=3)
    about = read_metadata(made.path)
    assert about.record.preprocessing.input_size == (1, 48, 40)
    assert about.sizes.shape == (3, 1, 48, 40)
    assert [check.top1 for check in made.checks] == [None, None]
    assert made.checks[-1].count == 18  # 16 digits, in batches of three
    assert held_against(model, made.path, "program", (3, 1, 48, 40)) < 1e-5
    graph = torch.export.load(made.path).graph
    assert not [node for node in graph.nodes if "upsample" in str(node.target)]
    assert model.spec.img_size == (32, 32)


def test_what_is_exported_is_the_rewritten_network():
    model = tiny("cvt_nano_32")
    sizes = choose_sizes(model.spec, (32, 32), None, ("batch",))
    program = trace(model, sizes, torch.float32, CPU)
    assert not [name for name in program.state_dict if "running" in name or name.endswith("k.bias")]
    called = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in called if "batch_norm" in name or "onednn" in name]
    assert any("scaled_dot_product_attention" in name for name in called)


def test_half_precision_is_told_and_allowed_more(tmp_path):
    half = export(tiny("vit_nano_32"), tmp_path / "a.pt2", dtype="bfloat16")
    assert half.metadata.dtype == read_metadata(half.path).dtype == "bfloat16"
    assert 1e-4 < max(check.error for check in half.checks) < half.limit == 0.3
    assert {each.dtype for each in torch.export.load(half.path).state_dict.values()} == {
        torch.bfloat16
    }


def test_sizes_that_one_graph_cannot_take_are_refused(monkeypatch, tmp_path):
    """From a side of one row on torch.export needs several graphs."""
    monkeypatch.setattr("cvt.inference.export.trace.smallest_free_side", lambda *_: 4)
    with pytest.raises(UserError, match="cannot be one graph for every batch and height"):
        export(tiny("vit_nano_32"), tmp_path / "a.pt2", dynamic=AXES)


@pytest.mark.slow
def test_sizes_that_torch_cannot_prove_are_tried():
    """Words fill whole patches: torch finds a guard in TNT that it cannot do away with."""
    model = tiny("tnt_nano_32")
    program = trace(model, choose_sizes(model.spec, (32, 32), None, AXES), torch.float32, CPU)
    for shape in ((1, 3, 12, 12), (3, 3, 33, 46), (2, 3, 40, 24)):
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), model(images))


def test_a_pyramid_is_refused(tmp_path):
    model = cvt.create_model("vit_nano_32", depth=1, features_only=True)
    with pytest.raises(UserError, match="expected a cvt model"):
        export(model, tmp_path / "a.pt2")


@pytest.mark.slow
def test_machine_code(tmp_path):
    model = tiny("cvt_nano_32")
    made = export(model, tmp_path / "a.aot.pt2")
    assert made.format == "aot"
    assert read_metadata(made.path) == made.metadata
    assert held_against(model, made.path, "aot", (1, 3, 32, 32), (7, 3, 32, 32)) < 1e-5
    assert any("aotinductor" in name for name in zipfile.ZipFile(made.path).namelist())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_half_precision_elsewhere(suffix, tmp_path):
    made = export(tiny("cvt_nano_32"), tmp_path / f"a{suffix}", dtype="float16")
    assert 1e-5 < max(check.error for check in made.checks) < made.limit == 0.05


def test_metadata_of_another_file_is_refused(tmp_path):
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "a.pt2")
    with pytest.raises(UserError, match="has no record"):
        read_metadata(tmp_path / "a.pt2")
    record = json.dumps(cvt.load("demo").record.to_dict())
    torch.export.save(program, tmp_path / "b.pt2", extra_files={"cvt": record})
    with pytest.raises(UserError, match="does not say which images it takes"):
        read_metadata(tmp_path / "b.pt2")
