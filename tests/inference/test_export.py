"""Exporting: which images a file takes, files in every format held against the model, refusals."""

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cvt
import networks
from cvt.errors import UserError
from cvt.files import atomic_files
from cvt.inference.export import (
    AXES,
    FORMATS,
    Metadata,
    choose_format,
    choose_sizes,
    read_metadata,
    trace,
)
from cvt.systems.catalog import ROWS
from exports import stub_format
from processors import pretend_cpu
from randomise import randomise

CPU = torch.device("cpu")

# --- Which images a file takes: the ranges, what is tried of them, and what is refused.


@settings(max_examples=50)
@given(
    name=st.sampled_from(sorted(ROWS)),
    dynamic=st.sets(st.sampled_from(AXES)),
    size=st.tuples(st.integers(32, 400), st.integers(32, 400)),
    batch=st.integers(1, 9),
)
def test_what_is_tried_is_allowed_and_covers_what_is_free(name, dynamic, size, batch):
    fixed = None if "batch" in dynamic else batch
    sizes = choose_sizes(ROWS[name], size, fixed, sorted(dynamic))
    assert set(sizes.free) == dynamic
    shapes = sizes.examples()
    for axis, place in (("batch", 0), ("height", 2), ("width", 3)):
        low, high = sizes.of(axis)
        tried = {shape[place] for shape in shapes}
        assert min(tried) >= low
        if axis in dynamic:
            assert high is None
            assert low in tried
            assert len(tried) > 1
        else:
            assert tried == {low} == {high}
    assert shapes[0][2:] == size
    about = Metadata(cvt.load("demo").record, sizes, "float32")
    assert Metadata.from_strings(about.to_strings(), source="it") == about


def test_one_graph_holds_from_three_rows_on():
    for name, size, lowest in (
        ("cvt_13", (224, 224), 35),  # 35, 9, 5, 3 rows
        ("cvt_13", (64, 300), 35),
        ("cvt_nano_32", (32, 32), 17),  # two rows are all it has
        ("vit_small_patch16_224", (224, 224), 48),
    ):
        assert choose_sizes(ROWS[name], size, None, AXES).height == (lowest, None)


def test_sizes_in_words():
    spec = ROWS["cvt_13"]
    fixed = choose_sizes(spec, (224, 160), 8, ())
    assert fixed.sentence() == "(8, 3, 224, 160)"
    free = choose_sizes(spec, (224, 160), None, AXES)
    assert free.sentence() == (
        "(batch, 3, height, width), batch from 1, height from 35, width from 35"
    )
    assert choose_sizes(spec, (64, 64), None, ()).batch == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dynamic": ["hight"]}, "Did you mean 'height'"),
        ({"dynamic": ["batch"], "batch_size": 2}, "Got batch_size 2 and a free batch"),
        ({"dynamic": [], "batch_size": 0}, "Got batch_size 0, expected 1 or more"),
        ({"dynamic": [], "size": (2, 64)}, "too small"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wrong, sentence):
    request = {"size": (64, 64), "batch_size": None, **wrong}
    with pytest.raises(UserError, match=sentence):
        choose_sizes(ROWS["cvt_13"], **request)


# --- Files in every format, run by their runtimes and held against the model, by us and by export.


def tiny(name, **changes):
    return randomise(cvt.create_model(name, **{"depth": 1, **changes})).eval()


def held_against(model, path, format, *shapes):
    """The largest error over images that the check has not seen, relative to the outputs."""
    run = FORMATS[format].load(path, CPU)
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
    made = cvt.export(model, tmp_path / f"a{suffix}", dynamic=AXES)
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
    made = cvt.export(model, tmp_path / "a.pt2", image_size=(48, 40), batch_size=3)
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
    half = cvt.export(tiny("vit_nano_32"), tmp_path / "a.pt2", dtype="bfloat16")
    assert half.metadata.dtype == read_metadata(half.path).dtype == "bf16"
    assert 1e-4 < max(check.error for check in half.checks) < half.limit == 0.3
    assert {each.dtype for each in torch.export.load(half.path).state_dict.values()} == {
        torch.bfloat16
    }


def test_sizes_that_one_graph_cannot_take_are_refused():
    """From a side of one row on torch.export needs several graphs."""
    model = tiny("vit_nano_32")
    sizes = choose_sizes(model.spec, (32, 32), None, AXES)
    sizes = replace(sizes, height=(4, None), width=(4, None))
    with pytest.raises(UserError, match="cannot be one graph for every batch and height"):
        trace(model, sizes, torch.float32, CPU)


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
        cvt.export(model, tmp_path / "a.pt2")


@pytest.mark.slow
def test_machine_code(tmp_path):
    model = tiny("cvt_nano_32")
    made = cvt.export(model, tmp_path / "a.aot.pt2")
    assert made.format == "aot"
    assert read_metadata(made.path) == made.metadata
    assert held_against(model, made.path, "aot", (1, 3, 32, 32), (7, 3, 32, 32)) < 1e-5
    assert any("aotinductor" in name for name in zipfile.ZipFile(made.path).namelist())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_half_precision_elsewhere(suffix, tmp_path):
    made = cvt.export(tiny("cvt_nano_32"), tmp_path / f"a{suffix}", dtype="float16")
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


def test_metadata_is_checked_and_formats_have_other_names():
    """Files written before say bfloat16; those of strangers may say anything."""
    sizes = choose_sizes(ROWS["cvt_13"], (224, 224), None, AXES)
    strings = Metadata(cvt.load("demo").record, sizes, "bf16").to_strings()
    about = json.loads(strings["cvt_input"])
    old = {**strings, "cvt_input": json.dumps({**about, "computes_in": "bfloat16"})}
    assert Metadata.from_strings(old, source="it").dtype == "bf16"
    for wrong in (7, {**about, "batch": "one"}, {**about, "computes_in": "words"}, {"usual": 3}):
        bad = {**strings, "cvt_input": json.dumps(wrong)}
        with pytest.raises(UserError, match="it does not say which images it takes"):
            Metadata.from_strings(bad, source="it")


# --- What is refused before work begins, and what is left on the disk when it ends badly.


@pytest.fixture(scope="module")
def model():
    return randomise(cvt.create_model("vit_nano_32", depth=1)).eval()


@pytest.fixture
def stub(monkeypatch, model):
    """Writes a word instead of a program; `stub.change` says what running it gives."""
    return stub_format(monkeypatch, "program", model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda output: output + 1e-2 * output.abs().max(), "off by 0.0"),
        (lambda output: output * torch.nan, "off by inf"),
        (lambda output: output[:, :3], "Got outputs of shapes"),
        (lambda output: 1 / 0, None),
    ],
)
def test_a_failed_check_leaves_what_was_there(stub, model, tmp_path, change, reason):
    stub.change = change
    path = tmp_path / "a.pt2"
    path.write_text("older")
    with pytest.raises(UserError if reason else ZeroDivisionError, match=reason):
        cvt.export(model, path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt2"]
    assert path.read_text() == "older"


def test_a_file_that_passes_takes_its_place(stub, model, tmp_path):
    path = tmp_path / "new" / "a.pt2"
    made = cvt.export(model, path, images=None)
    assert [each.name for each in path.parent.iterdir()] == ["a.pt2"]
    assert [check.images for check in made.checks] == ["random"] * 3 + ["digits"]
    assert all(check.error == 0 and check.top1 == 100 for check in made.checks)
    assert made.checks[-1].count == 16


def test_images_of_the_user_and_those_that_cannot_be_read(stub, model, photos):
    (photos / "broken.png").write_text("no image")
    made = cvt.export(model, photos / "a.pt2", images=photos, batch_size=3)
    assert [(check.images, check.count) for check in made.checks] == [
        ("random", 3),
        (str(photos), 6),
    ]
    assert len(made.bad_images) == 1
    assert "broken.png" in made.bad_images[0]
    with pytest.raises(UserError, match=r"no image in .* that can be read"):
        cvt.export(model, photos / "b.pt2", images=photos / "broken.png")


def test_a_model_that_is_broken_itself_is_not_blamed_on_the_file(stub, tmp_path, model):
    broken = cvt.create_model("vit_nano_32", depth=1)
    with torch.no_grad():
        broken.head.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"own outputs .* are not all finite"):
        cvt.export(broken, tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("a.tflite", {}, r"ends in \.aot\.pt2 .*\.pt2 .*\.onnx .*\.xml"),
        ("a", {}, "expected a name that ends in"),
        (".onnx", {}, "expected a name that ends in"),
        ("a.onnx", {"format": "program"}, r"ends in \.pt2"),
        ("a.onnx", {"format": "onx"}, "Did you mean 'onnx'"),
        ("a.onnx", {"dtype": "bfloat16"}, "Got dtype 'bf16' for ONNX, expected float32 or fp16"),
        ("a.pt2", {"dtype": "flot32"}, "Did you mean 'float32'"),
        ("a.pt2", {"device": "toaster"}, "lacks"),
        ("a.xml", {"device": "meta"}, "leave the device out"),
        ("a.pt2", {"image_size": 2}, "too small"),
        ("folder.pt2", {}, "Got the folder"),
        ("file/a.pt2", {}, "Cannot write"),
    ],
)
def test_what_is_refused_before_work_begins(stub, model, tmp_path, path, options, sentence):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=sentence):
        cvt.export(model, tmp_path / path, **options)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.pt2"]


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    with pytest.raises(UserError, match="Got a Linear, expected a cvt model"):
        cvt.export(torch.nn.Linear(2, 2), tmp_path / "a.pt2")


@pytest.fixture
def int8_stub(monkeypatch, model):
    """Writes words instead of OpenVINO's files, and keeps the images of calibration."""
    pytest.importorskip("nncf")
    return stub_format(monkeypatch, "openvino", model)


def test_int8_is_calibrated_and_checked_on_the_images_at_the_size_exported(
    int8_stub, model, photos, tmp_path
):
    made = cvt.export(model, tmp_path / "a.xml", dtype="int8", calibration=photos, image_size=48)
    ((dtype, calibration),) = int8_stub.written
    assert dtype == made.metadata.dtype == "int8"
    assert calibration.shape == (4, 3, 48, 48)
    assert (made.checks[-1].images, made.checks[-1].count) == ("calibration", 4)
    assert made.caution is None
    made = cvt.export(
        model, tmp_path / "a.xml", dtype="int8", calibration=calibration, images=photos / "a.jpg"
    )
    assert [check.images for check in made.checks[-2:]] == ["calibration", str(photos / "a.jpg")]


def test_int8_that_answers_otherwise_is_told(int8_stub, model, tmp_path):
    """Every answer is another one, by little."""
    images = torch.randn(5, 3, 32, 32)
    calibration = images[:1].expand(5, -1, -1, -1)
    with torch.no_grad():
        logits = model(images[:1])
    top = logits.topk(2).indices[0]
    gap = (logits[0, top[0]] - logits[0, top[1]]).item()
    off = torch.zeros_like(logits)
    off[0, top[1]] = gap + 1e-3
    int8_stub.change = lambda output: output + off
    with pytest.warns(UserWarning, match=r"0.00 % of 5 images \(calibration\)"):
        made = cvt.export(model, tmp_path / "a.xml", dtype="int8", calibration=calibration)
    assert made.caution is not None
    assert made.checks[-1].top1 == 0


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("a.xml", {"dtype": "int8"}, "int8 without calibration images"),
        ("a.xml", {"calibration": torch.zeros(1, 3, 32, 32)}, "with int8 alone"),
        ("a.onnx", {"dtype": "int8"}, "for ONNX, expected float32 or fp16"),
        ("a.xml", {"dtype": "int8", "calibration": "no/folder"}, "There is no data at"),
    ],
)
def test_int8_and_images_come_together(model, tmp_path, path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        cvt.export(model, tmp_path / path, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_machine_code_in_what_this_machine_lacks_is_refused(model, tmp_path, monkeypatch, dtype):
    pretend_cpu(monkeypatch, "avx512_f")
    with pytest.raises(UserError, match="this CPU has no instructions"):
        cvt.export(model, tmp_path / "a.aot.pt2", dtype=dtype)


def test_int8_names_the_extras_of_both_packages(model, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r'int8, which needs nncf; .* "cvt\[int8,openvino\]"'):
        cvt.export(model, tmp_path / "a.xml", dtype="int8", calibration=tmp_path)


@pytest.mark.parametrize(("name", "package"), [("a.onnx", "onnxruntime"), ("a.xml", "openvino")])
def test_a_package_that_is_missing_is_named_with_its_extra(
    model, tmp_path, monkeypatch, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    extra = package.removesuffix("runtime")
    with pytest.raises(UserError, match=rf'needs {package}; .* pip install "cvt\[{extra}\]"'):
        cvt.export(model, tmp_path / name)


def test_a_missing_compiler_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is no"):
        cvt.export(model, tmp_path / "a.aot.pt2")


def test_weights_have_to_be_named_or_asked_to_be_fresh(stub, tmp_path):
    with pytest.raises(UserError, match="names no weights"):
        cvt.export("vit_nano_32", tmp_path / "a.pt2")
    stub.model = cvt.create_model("vit_nano_32")
    made = None
    with pytest.raises(UserError, match="off by"):  # other fresh weights than the stub's
        made = cvt.export("vit_nano_32", tmp_path / "a.pt2", untrained=True)
    assert made is None


def test_formats_by_name():
    assert choose_format(Path("A.AOT.PT2")).name == "aot"
    assert choose_format(Path("a.pt2")).name == "program"
    assert choose_format(Path("a.pt2"), "aot").name == "aot"


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx", "a.xml"])
def test_what_is_no_exported_file_says_so(tmp_path, name):
    with pytest.raises(UserError, match="There is no file"):
        read_metadata(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(UserError, match="damaged or no"):
        read_metadata(tmp_path / name)


def test_two_files_move_together(tmp_path):
    (tmp_path / "a.xml").write_text("old graph")
    (tmp_path / "a.bin").write_text("old weights")
    with pytest.raises(UserError, match="Cannot write"):  # a companion is missing
        write(tmp_path / "a.xml", "a.bin", weights=False)
    assert contents(tmp_path) == {"a.xml": "old graph", "a.bin": "old weights"}
    write(tmp_path / "a.xml", "a.bin")
    assert contents(tmp_path) == {"a.xml": "new graph", "a.bin": "new weights"}


def test_a_graph_is_never_beside_weights_that_are_not_its_own(tmp_path, monkeypatch):
    (tmp_path / "a.xml").write_text("old graph")
    (tmp_path / "a.bin").write_text("old weights")
    seen = []
    real = Path.replace

    def replace(self, target):
        seen.append(contents(tmp_path))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write(tmp_path / "a.xml", "a.bin")
    assert seen == [{"a.bin": "old weights"}, {"a.bin": "new weights"}]


def write(path, companion, weights=True):
    with atomic_files(path, companion) as temporary:
        temporary.write_text("new graph")
        if weights:
            temporary.with_name(companion).write_text("new weights")


def contents(folder):
    return {each.name: each.read_text() for each in folder.iterdir() if each.is_file()}
