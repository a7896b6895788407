import io
import json
import sys

import pytest


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
    assert (code, err) == (0, "")
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


def test_a_picture_on_stdin(run, checkpoint, photos, feed):
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
    assert err == (
        "cvt: this is the demo model, which knows airplane, automobile, bird, cat, deer, dog, "
        "frog, horse, ship, truck.\n"
    )
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
