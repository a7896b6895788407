import io
import json
import sys
from dataclasses import replace

import pytest

import cvt
from cvt.cli import main
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def feed(monkeypatch):
    """Puts bytes on standard input."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


def names(out):
    return [json.loads(line)["image"].rsplit("/", 1)[-1] for line in out.splitlines()]


def test_files_folders_and_patterns(run, checkpoint, photos):
    code, out, err = run("predict", checkpoint, photos, "--json")
    assert (code, err) == (0, f"cvt: 1 file in {photos} is not used: 1 .txt (notes.txt).\n")
    assert names(out) == ["a.jpg", "b.png", "c.webp", "d.jpeg"]
    out = run("predict", checkpoint, f"{photos}/**/*.[jw]*", photos / "b.png", "--json")[1]
    assert names(out) == ["a.jpg", "c.webp", "d.jpeg", "b.png"]


def test_people_get_percentages(run, checkpoint, photos):
    code, out, _ = run("predict", checkpoint, photos / "a.jpg", "--top-k", "2")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].endswith("a.jpg")
    assert len(lines) == 3
    assert "%" in lines[1]


def test_an_image_on_stdin(run, checkpoint, photos, feed):
    feed((photos / "b.png").read_bytes())
    from_stdin = json.loads(run("predict", checkpoint, "-", "--json")[1])
    from_file = json.loads(run("predict", checkpoint, photos / "b.png", "--json")[1])
    assert from_stdin["labels"] == from_file["labels"]


def test_file_names_on_stdin(run, checkpoint, photos, feed):
    feed(f"{photos}/a.jpg\n\n{photos}/b.png\n".encode())
    assert names(run("predict", checkpoint, "-", "--json")[1]) == ["a.jpg", "b.png"]


def test_bad_among_good_is_named_skipped_and_counted(run, checkpoint, photos, tmp_path):
    (tmp_path / "zero.png").touch()
    code, out, err = run("predict", checkpoint, photos / "b.png", tmp_path / "zero.png", "nope.jpg")
    assert code == 1
    assert "b.png" in out
    assert "zero.png" in err
    assert "nope.jpg" in err
    assert "2 of 3 inputs were skipped" in err


def test_bad_ones_keep_their_line_for_machines(run, checkpoint, photos):
    out = run("predict", checkpoint, "nope.jpg", photos / "b.png", "--json")[1]
    rows = [json.loads(line) for line in out.splitlines()]
    assert "error" in rows[0]
    assert "labels" in rows[1]


@pytest.mark.parametrize("argument", ["nope.jpg", "no*such*thing", "EMPTY"])
def test_nothing_but_bad_is_exit_code_2(run, checkpoint, tmp_path, argument):
    (tmp_path / "empty").mkdir()
    argument = tmp_path / "empty" if argument == "EMPTY" else argument
    code, out, err = run("predict", checkpoint, argument)
    assert (code, out) == (2, "")
    assert "skipped" in err


def test_empty_stdin(run, checkpoint, feed):
    feed(b"")
    code, _, err = run("predict", checkpoint, "-")
    assert code == 2
    assert "stdin is empty" in err


def test_no_image_at_all(run, checkpoint):
    code, _, err = run("predict", checkpoint)
    assert code == 2
    assert "no image" in err


def test_200_megapixels_are_refused_before_decoding(run, checkpoint, tmp_path):
    from PIL import Image

    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    code, _, err = run("predict", checkpoint, tmp_path / "huge.png")
    assert code == 2
    assert "megapixels" in err


def test_without_a_checkpoint_the_demo_model_answers(run, photos):
    code, out, err = run("predict", photos / "a.jpg", photos / "b.png", "-k", "1")
    assert code == 0
    assert "a.jpg" in out
    assert "b.png" in out
    known = cvt.load("demo").record.class_names
    assert err.startswith(f"cvt: this is the demo model, which knows {len(known)} kinds of things")
    assert known[0] in err
    code, out, err = run("predict", photos, "--json")
    assert names(out) == ["a.jpg", "b.png", "c.webp", "d.jpeg"]
    assert "demo model" in err


def test_a_missing_image_is_no_checkpoint_and_a_missing_checkpoint_no_image(run, photos):
    code, _, err = run("predict", "nope.jpg", photos / "a.jpg")
    assert code == 1
    assert "nope.jpg" in err
    code, _, err = run("predict", "cvt_13.msft_in2k", photos / "a.jpg")
    assert code == 2
    assert "There are no weights 'cvt_13.msft_in2k'" in err


def test_skipped_inputs_are_no_failure_to_torchrun(run, checkpoint, photos, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    assert run("predict", checkpoint, photos / "a.jpg", "nope.jpg")[0] == 0
    assert run("predict", checkpoint, "nope.jpg")[0] == 2


@pytest.mark.parametrize("arguments", [("--csv", "out.csv"), ("-q",), ("--topk=3",), ("-5x.jpg",)])
@pytest.mark.parametrize("first", [True, False])
def test_a_mistyped_option_is_no_image(run, photos, arguments, first):
    image = (photos / "a.jpg",)
    code, out, err = run("predict", *(arguments + image if first else image + arguments))
    assert (code, out) == (2, "")
    assert "option" in err
    assert arguments[0].partition("=")[0] in err


def test_files_may_be_called_like_options(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--x.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (tmp_path / "-k").write_bytes((photos / "b.png").read_bytes())
    code, out, _ = run("predict", "./--x.jpg", "--json", "--", "--x.jpg", "-k")
    assert code == 0
    assert names(out) == ["--x.jpg", "--x.jpg", "-k"]


@pytest.mark.parametrize("name", ["f.onnx", "f.xml", "f.pt2", "f.aot.pt2"])
def test_an_exported_file_is_not_answered_for_by_the_demo(run, photos, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08\x01some graph")
    code, out, err = run("predict", tmp_path / name, photos / "a.jpg")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "exported network" in err
    assert "the program that cvt export printed" in err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"words", "neither weights nor an image"),
        ("model.h5", b"\x89HDF\r\n", "neither weights nor an image"),
        ("empty", b"", "neither weights nor an image"),
        ("folder/notes.txt", b"words", "holds no images"),
        ("run/config.yaml", b"model: x", "no weights yet"),
    ],
)
def test_what_is_neither_model_nor_image_stops_the_rest(
    run, photos, tmp_path, name, content, words
):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    first = tmp_path / name.partition("/")[0]
    code, out, err = run("predict", first, photos / "a.jpg")
    assert (code, out) == (2, "")
    *notes, sentence = err.splitlines()
    assert words in sentence
    assert str(first) in sentence
    assert all("notes.txt" in note for note in notes)


def test_an_image_needs_no_suffix_to_be_one(run, photos, tmp_path):
    (tmp_path / "photo").write_bytes((photos / "a.jpg").read_bytes())
    code, _, err = run("predict", tmp_path / "photo", "-k", "1")
    assert code == 0
    assert "demo model" in err


@pytest.mark.parametrize(
    "name", ["a\n  99.99%  cat\n.png", "\x1b[31mx.png", "  99.99%  cat.png", "a\u2028b\u202e.png"]
)
def test_a_name_cannot_forge_an_answer(run, checkpoint, photos, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes((photos / "b.png").read_bytes())
    code, out, err = run("predict", checkpoint, ".", "-k", "1")
    assert code == 0
    heads = [line for line in out.split("\n")[:-1] if not line.startswith("  ")]
    assert len(heads) == 5
    assert len(out.splitlines()) == 10
    assert not {"\x1b", "\u2028", "\u202e"} & set(out + err)
    (got,) = (json.loads(x) for x in run("predict", checkpoint, name, "--json")[1].splitlines())
    assert got["image"] == name


def test_class_names_cannot_forge_an_answer(run, checkpoint, photos, tmp_path):
    tensors, record = load_checkpoint(checkpoint)
    strange = tuple(f"\x1b]0;x\x07\n{number}.jpg\n  99.99%  cat" for number in range(6))
    save_checkpoint(tmp_path / "m.safetensors", tensors, replace(record, class_names=strange))
    code, out, _ = run("predict", tmp_path / "m.safetensors", photos / "b.png", "-k", "6")
    assert (code, len(out.splitlines())) == (0, 7)
    assert "\x1b" not in out
    lines = run("predict", tmp_path / "m.safetensors", photos / "b.png", "--json")[1].splitlines()
    assert {label["name"] for label in json.loads(lines[0])["labels"]} < set(strange)


def test_without_any_stdin_files_are_still_read(run, checkpoint, photos, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert run("predict", checkpoint, photos / "a.jpg")[0] == 0
    assert "stdin is empty" in run("predict", checkpoint, "-")[2]


def test_answers_come_one_by_one(checkpoint, photos, monkeypatch):
    """So that `| head -1` has its line while others are still computed."""
    written = []

    class Pipe(io.StringIO):
        def flush(self):
            written.append(self.getvalue().count("\n"))

    monkeypatch.setattr(sys, "stdout", Pipe())
    main(["predict", str(checkpoint), str(photos), "--batch-size", "1", "-k", "1"])
    assert {2, 4, 6, 8} <= set(written)


def test_outputs_that_are_no_numbers_are_skipped(run, without_numbers, photos):
    code, out, err = run("predict", without_numbers, photos / "a.jpg")
    assert (code, out) == (2, "")
    assert "no finite number" in err
    assert "nan" not in out


@pytest.mark.parametrize(
    "url", ["https://example.org/a/rose.jpg", "s3://bucket/rose.png", "https://x.org/r.jpg?w=3"]
)
def test_a_url_is_named_as_it_was_given(run, checkpoint, url):
    for arguments in ((url,), (checkpoint, url)):
        code, out, err = run("predict", *arguments)
        assert (code, out) == (2, "")
        assert f"Got the URL {url}, and nothing is fetched" in err
    assert json.loads(run("predict", checkpoint, url, "--json")[1])["image"] == url
    code, _, err = run("predict", "https://x.org/m.safetensors", "a.jpg")
    assert (code, err.count("\n")) == (2, 1)
    assert "Got the URL https://x.org/m.safetensors" in err
    code, _, err = run("eval", checkpoint, "https://x.org/data")
    assert (code, err.count("\n")) == (2, 1)
    assert "Got the URL https://x.org/data as data" in err
