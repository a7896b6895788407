"""The command lines that help ends with, each of them run where there are photographs."""

import shlex
import shutil

import pytest
from PIL import Image

import contests
import cvt
import speed_benches
from cvt.cli.main import VERBS, make_app
from shades import write_shades

SLOW = {
    "cvt probe demo digits",
    "cvt export runs/photos photos.onnx",
    "cvt export demo demo.pt2 --dynamic none",
}
EXAMPLES = [
    pytest.param(verb, line, id=line, marks=[pytest.mark.slow] if line in SLOW else [])
    for verb, each in VERBS.items()
    for line in each.examples
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the examples name: a photograph, class folders of them, and what learned from these."""
    place = tmp_path_factory.mktemp("place")
    for name in ("photos", "held_out"):
        for path in write_shades(place / name).rglob("*.png"):
            Image.open(path).save(path.with_suffix(".jpg"))
            path.unlink()
    Image.effect_noise((40, 30), 80).convert("RGB").save(place / "photo.jpg")
    cvt.train(
        str(place / "photos"),
        model="cvt_nano_32",
        model_args={"depth": 1},
        image_size=8,
        epochs=1,
        batch_size=8,
        num_workers=0,
        device="cpu",
        out=str(place / "runs" / "photos"),
        progress=False,
    )
    return place


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_two_examples_of_its_own(run, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = run(verb, "--help")[1].partition("\nExamples:\n")[2]
    lines = printed.splitlines()
    assert lines == [f"  {each}" for each in VERBS[verb].examples]
    assert len(lines) == 2
    assert all(line.startswith(f"  cvt {verb}") and len(line) <= 80 for line in lines)


def test_what_takes_seconds_is_an_example_that_can_be_read():
    for line in SLOW:
        _, verb, *words = shlex.split(line)
        assert line in VERBS[verb].examples
        make_app(verb).parse_args([verb, *words], exit_on_error=False, print_error=False)


@pytest.mark.parametrize(("verb", "line"), EXAMPLES)
def test_an_example_works(run, place, tmp_path, monkeypatch, verb, line):
    """What trains or measures for minutes only says how, or is given its figures."""
    monkeypatch.chdir(shutil.copytree(place, tmp_path / "place"))
    monkeypatch.setattr(contests.WORK, contests.FakeWork())
    monkeypatch.setattr(speed_benches.WORK, speed_benches.FakeSpeed())
    more = ["--print-config"] if verb == "train" else []
    code, out, err = run(*shlex.split(line)[1:], *more)
    assert (code, "cvt: skipped" in err) == (0, False), err
    assert out
