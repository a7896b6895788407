"""What is refused before work begins, and what is left on the disk when it ends badly."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

import cvt
from cvt.errors import UserError
from cvt.files import atomic_files
from cvt.inference.export import format_openvino as export_openvino
from cvt.inference.export import format_program as export_program
from cvt.inference.export.export import export, read_metadata
from cvt.inference.export.formats import choose_format
from randomise import randomise


@pytest.fixture(scope="module")
def model():
    return randomise(cvt.create_model("vit_nano_32", depth=1)).eval()


@pytest.fixture
def stub(monkeypatch, model):
    """Writes a word instead of a program; `stub(change)` says what running it gives."""
    change = []

    def write(program, path, metadata, dtype):
        path.write_text("a program")

    def load(path, device):
        assert path.read_text() == "a program"
        assert path.suffix == ".pt2"

        @torch.no_grad()
        def run(images):
            return change[0](model(images))

        return run

    monkeypatch.setattr("cvt.inference.export.export.trace", lambda *_: None)
    monkeypatch.setattr(export_program, "write", write)
    monkeypatch.setattr(export_program, "load", load)
    return change.append


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
    stub(change)
    path = tmp_path / "a.pt2"
    path.write_text("older")
    with pytest.raises(UserError if reason else ZeroDivisionError, match=reason):
        export(model, path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt2"]
    assert path.read_text() == "older"


def test_a_file_that_passes_takes_its_place(stub, model, tmp_path):
    stub(lambda output: output)
    path = tmp_path / "new" / "a.pt2"
    made = export(model, path, images=None)
    assert [each.name for each in path.parent.iterdir()] == ["a.pt2"]
    assert [check.images for check in made.checks] == ["random"] * 3 + ["digits"]
    assert all(check.error == 0 and check.top1 == 100 for check in made.checks)
    assert made.checks[-1].count == 16


def test_pictures_of_the_user_and_those_that_cannot_be_read(stub, model, photos):
    stub(lambda output: output)
    (photos / "broken.png").write_text("no picture")
    made = export(model, photos / "a.pt2", images=photos, batch_size=3)
    assert [(check.images, check.count) for check in made.checks] == [
        ("random", 3),
        (str(photos), 6),
    ]
    assert len(made.bad_images) == 1
    assert "broken.png" in made.bad_images[0]
    with pytest.raises(UserError, match=r"no image in .* that can be read"):
        export(model, photos / "b.pt2", images=photos / "broken.png")


def test_a_model_that_is_broken_itself_is_not_blamed_on_the_file(stub, tmp_path, model):
    stub(lambda output: output)
    broken = cvt.create_model("vit_nano_32", depth=1)
    with torch.no_grad():
        broken.head.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"own outputs .* are not all finite"):
        export(broken, tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("a.tflite", {}, r"ends in \.aot\.pt2 .*\.pt2 .*\.onnx .*\.xml"),
        ("a", {}, "expected a name that ends in"),
        (".onnx", {}, "expected a name that ends in"),
        ("a.onnx", {"format": "program"}, r"ends in \.pt2"),
        ("a.onnx", {"format": "onx"}, "Did you mean 'onnx'"),
        ("a.onnx", {"dtype": "bfloat16"}, "expected float32 or float16"),
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
        export(model, tmp_path / path, **options)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.pt2"]


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    with pytest.raises(UserError, match="Got a Linear, expected a cvt model"):
        export(torch.nn.Linear(2, 2), tmp_path / "a.pt2")


@pytest.fixture
def int8_stub(monkeypatch, model):
    """Writes words instead of OpenVINO's files, and keeps the images of calibration."""
    kept, change = [], [lambda output: output]

    def write(program, path, metadata, dtype, calibration):
        kept.append((dtype, calibration))
        path.write_text("a graph")
        path.with_suffix(".bin").write_text("weights")

    @torch.no_grad()
    def run(images):
        return change[0](model(images))

    monkeypatch.setattr("cvt.inference.export.export.trace", lambda *_: None)
    monkeypatch.setattr(export_openvino, "write", write)
    monkeypatch.setattr(export_openvino, "load", lambda *_: run)
    return kept, change


def test_int8_is_calibrated_and_checked_on_the_pictures_at_the_size_exported(
    int8_stub, model, photos, tmp_path
):
    made = export(model, tmp_path / "a.xml", dtype="int8", calibration=photos, image_size=48)
    ((dtype, calibration),) = int8_stub[0]
    assert dtype == made.metadata.dtype == "int8"
    assert calibration.shape == (4, 3, 48, 48)
    assert (made.checks[-1].images, made.checks[-1].count) == ("calibration", 4)
    assert made.caution is None
    made = export(
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
    int8_stub[1][0] = lambda output: output + off
    with pytest.warns(UserWarning, match=r"0.00 % of 5 images \(calibration\)"):
        made = export(model, tmp_path / "a.xml", dtype="int8", calibration=calibration)
    assert made.caution is not None
    assert made.checks[-1].top1 == 0


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("a.xml", {"dtype": "int8"}, "int8 without calibration images"),
        ("a.xml", {"calibration": torch.zeros(1, 3, 32, 32)}, "with int8 alone"),
        ("a.onnx", {"dtype": "int8"}, "for ONNX, expected float32 or float16"),
        ("a.xml", {"dtype": "int8", "calibration": "no/folder"}, "There is no data at"),
    ],
)
def test_int8_and_images_come_together(model, tmp_path, path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        export(model, tmp_path / path, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_machine_code_in_what_this_machine_lacks_is_refused(model, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("cvt.inference.rewrite.cpu_computes", lambda dtype: False)
    with pytest.raises(UserError, match="this CPU has no instructions"):
        export(model, tmp_path / "a.aot.pt2", dtype=dtype)


def test_int8_names_the_extras_of_both_packages(model, tmp_path, monkeypatch):
    found = lambda each, *rest: None if each == "nncf" else each  # noqa: E731
    monkeypatch.setattr("cvt.inference.export.formats.find_spec", found)
    with pytest.raises(UserError, match=r'int8, which needs nncf; .* "cvt\[int8,openvino\]"'):
        export(model, tmp_path / "a.xml", dtype="int8", calibration=tmp_path)


@pytest.mark.parametrize(("name", "package"), [("a.onnx", "onnxruntime"), ("a.xml", "openvino")])
def test_a_package_that_is_missing_is_named_with_its_extra(
    model, tmp_path, monkeypatch, name, package
):
    real = importlib.util.find_spec
    found = lambda each, *rest: None if each == package else real(each, *rest)  # noqa: E731
    monkeypatch.setattr("cvt.inference.export.formats.find_spec", found)
    extra = package.removesuffix("runtime")
    with pytest.raises(UserError, match=rf'needs {package}; .* pip install "cvt\[{extra}\]"'):
        export(model, tmp_path / name)


def test_a_missing_compiler_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is no"):
        export(model, tmp_path / "a.aot.pt2")


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
