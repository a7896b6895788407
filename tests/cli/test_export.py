"""`cvt export`: what it prints, and that the program it prints runs without the library."""

import io
import json
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

import cvt
from cvt.cli import main
from cvt.inference.export import FORMATS, Exported, Metadata, choose_sizes, read_metadata
from exports import stub_format

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"
FILES = {"program": "a.pt2", "onnx": "a.onnx", "openvino": "a.xml"}
SOME = [*FILES, pytest.param("aot", marks=pytest.mark.slow)]
TITLES = {"program": "torch.export program", "onnx": "ONNX", "openvino": "OpenVINO"}
TITLES["aot"] = "AOTInductor package"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """`exported(format)`: the file and what was printed; each is written once."""
    made = {}

    def get(format):
        if format not in made:
            path = tmp_path_factory.mktemp(format) / FILES.get(format, "a.aot.pt2")
            with redirect_stdout(io.StringIO()) as printed:
                code = main(["export", str(checkpoint), str(path)])
            made[format] = code, path, printed.getvalue()
        return made[format]

    return get


@pytest.mark.parametrize("format", SOME)
def test_it_says_what_was_written_and_how_it_was_checked(exported, format):
    code, path, printed = exported(format)
    assert code == 0
    first, *lines = printed.splitlines()
    assert first.startswith(f"Wrote {path}: {TITLES[format]}, float32, ")
    assert first.endswith(" MB, for images (batch, 3, 32, 32), batch from 1.")
    rows = [line.split() for line in lines if line.startswith(("random", "digits"))]
    assert [row[:3] for row in rows] == [
        ["random", "2", "32x32"],
        ["random", "3", "32x32"],
        ["random", "1", "32x32"],
        ["digits", "16", "32x32"],
    ]
    assert all(float(row[3]) < 1e-5 and row[5] == "100" for row in rows)
    names = {path.name, "a.bin"} if format == "openvino" else {path.name}
    assert {each.name for each in path.parent.iterdir()} == names


@pytest.mark.parametrize("format", SOME)
def test_the_program_that_is_printed_runs_as_it_stands(exported, format, checkpoint, photos):
    _, path, printed = exported(format)
    source = printed.partition("without cvt:\n\n")[2]
    assert str(path) in source
    script = photos / "use.py"
    script.write_text(f"import sys\nsys.modules['cvt'] = None\n{source}")
    done = subprocess.run(
        [sys.executable, script, photos / "a.jpg"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (expected,) = cvt.Predictor(checkpoint)(photos / "a.jpg", top_k=5)
    got = [line.split() for line in done.stdout.splitlines()]
    assert [name for _, name in got] == [label.name for label in expected.labels]
    for (chance, _), label in zip(got, expected.labels, strict=True):
        assert float(chance.rstrip("%")) == pytest.approx(100 * label.probability, abs=0.011)


@pytest.mark.parametrize("format", FILES)
def test_a_size_that_is_fixed_is_fixed(exported, format):
    run = FORMATS[format].load(exported(format)[1], torch.device("cpu"))
    assert run(torch.zeros(4, 3, 32, 32)).shape == (4, 6)
    errors = {"program": AssertionError, "onnx": InvalidArgument, "openvino": RuntimeError}
    with pytest.raises(errors[format]):
        run(torch.zeros(4, 3, 48, 48))


@pytest.mark.parametrize("format", SOME)
def test_the_record_travels_along(exported, format, checkpoint):
    about = read_metadata(exported(format)[1])
    assert about.record == cvt.load(checkpoint).record
    assert about.dtype == "float32"


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.exists(), reason="needs the images beside the checkout")
def test_int8_on_real_images_and_the_program_it_prints(run, tmp_path):
    path = tmp_path / "a.xml"
    code, out, _ = run("export", "demo", path, "--dtype", "int8", "--calibration", PHOTOS)
    assert code == 0
    assert f"Wrote {path}: OpenVINO, int8, 1." in out
    (row,) = (line.split() for line in out.splitlines() if line.startswith("calibration"))
    assert int(row[1]) > 100
    assert 1e-3 < float(row[4]) < 0.05 < float(row[3]) < 0.5
    assert float(row[5]) > 97
    script = tmp_path / "use.py"
    script.write_text(out.partition("without cvt:\n\n")[2])
    image = sorted(PHOTOS.glob("*.JPEG"))[0]
    done = subprocess.run(
        [sys.executable, script, image], capture_output=True, text=True, check=True
    )
    (expected,) = cvt.Predictor("demo")(image, top_k=1)
    assert done.stdout.split()[1] == expected.labels[0].name


def test_int8_that_answers_otherwise_is_told_on_stderr(run, checkpoint, photos, monkeypatch):
    def export(model, path, **options):
        assert options["calibration"] == str(photos)
        warnings.warn("In int8 the network does not quite", stacklevel=1)
        network = cvt.load(model)
        sizes = choose_sizes(network.spec, (32, 32), None, ("batch",))
        return Exported(
            path=path,
            format="openvino",
            num_bytes=0,
            metadata=Metadata(network.record, sizes, "int8"),
            checks=(),
            limit=1.0,
            bad_images=(),
            caution="In int8 the network is off.",
            snippet="",
        )

    monkeypatch.setattr(cvt, "export", export)
    code, _, err = run("export", checkpoint, photos / "a.xml", "--calibration", photos)
    assert (code, err) == (0, "cvt: In int8 the network is off.\n")


def test_fresh_weights_have_to_be_asked_for(run, tmp_path):
    code, _, err = run("export", "vit_nano_32", tmp_path / "a.pt2")
    assert code == 2
    assert "names no weights" in err
    assert "--untrained" in err
    code, out, err = run(
        "export", "vit_nano_32", tmp_path / "a.pt2", "--untrained", "--batch-size=1", "--json"
    )
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["format"] == "program"
    assert said["input"]["batch"] == [1, 1]
    assert said["num_bytes"] == (tmp_path / "a.pt2").stat().st_size
    compile(said["snippet"], "use.py", "exec")


def test_images_that_cannot_be_read_are_named(run, checkpoint, photos, tmp_path, monkeypatch):
    stub_format(monkeypatch, "program", cvt.load(checkpoint))
    (photos / "broken.png").write_text("no image")
    code, out, err = run("export", checkpoint, tmp_path / "a.pt2", "--images", photos)
    assert code == 1
    assert "1 of 5 images skipped" in err
    assert str(photos) in out


def test_a_file_that_would_lie_beside_is_not_written_over(run, checkpoint, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    code, out, err = run("export", checkpoint, tmp_path / "pytorch_model.xml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pytorch_model.bin beside it, which is there" in err
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "a.tflite"], "expected a name that ends in"),
        (["dem", "a.onnx"], "There are no weights 'dem'"),
        (["demo", "a.onnx", "--image-size", "big"], "Got size 'big'"),
        (["demo", "a.onnx", "--dynamic", "batch,hight"], "Did you mean 'height'"),
        (["demo", "a.onnx", "--dynamic", ","], "expected batch, batch,height,width or none"),
        (["demo", "a.onnx", "--dynamic", "batch", "--batch-size", "2"], "and a free batch"),
        (["demo", "a.xml", "--dtype", "bfloat16"], "expected float32 or fp16 or int8"),
        (["demo", "a.xml", "--dtype", "int8"], "int8 without calibration images"),
        (["demo", "a.xml", "--calibration", "photos"], "with int8 alone"),
        (["no_such_model", "a.onnx", "--untrained"], "Unknown model"),
        (["demo", "FILE/a.onnx"], "Cannot write"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, arguments, sentence):
    (tmp_path / "file").touch()
    model, path, *rest = arguments
    path = path.replace("FILE", "file")
    code, out, err = run("export", model, tmp_path / path, *rest)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
