"""What a comparison came to: figures and their spread, files that are damaged, the plot."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from cvt.bench.contest import (
    ContenderResult,
    ContestResults,
    Measured,
    RunResult,
    Spread,
    notes_of,
    pareto_front,
    save_contest,
)
from cvt.bench.contest.contest import COMPARISON, Ledger
from cvt.bench.contest.runs import read_run
from cvt.bench.folder import ResultsFolder, results_folder
from cvt.bench.names import Contender
from cvt.errors import UserError
from cvt.training.report import interval
from trained import config_of

numbers = st.floats(0, 1e6, allow_nan=False)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)
runs = st.builds(
    RunResult,
    label=texts,
    seed=st.integers(0, 9),
    top1=st.none() | numbers,
    top5=st.none() | numbers,
    val_top1=st.none() | numbers,
    updates=st.none() | st.integers(0, 10**9),
    images=st.none() | st.integers(0, 10**9),
    train_images_per_s=st.none() | numbers,
    memory_mb=st.none() | numbers,
    seconds=st.none() | numbers,
    hardware=texts,
    bad=st.none() | st.integers(0, 10),
    error=texts,
)


@given(st.lists(runs, max_size=4))
def test_the_table_of_runs_says_again_what_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("ledger")
    ResultsFolder(folder, COMPARISON).write(rows, lambda row: {"macs": 5})
    assert ResultsFolder(folder, COMPARISON).rows == rows


@given(st.lists(numbers, min_size=2, max_size=6))
def test_the_spread_is_numpys(values):
    spread = Spread.of(values)
    assert spread.count == len(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert (spread.min, spread.max) == (min(values), max(values))


def test_one_value_has_no_spread_and_none_no_mean():
    assert Spread.of([3.0]) == Spread(count=1, mean=3.0, std=None, min=3.0, max=3.0)
    assert Spread.of([]) is None


def test_failed_runs_are_left_out():
    runs = (
        RunResult(label="a", seed=0, top1=80.0, train_images_per_s=10.0),
        RunResult(label="a", seed=1, error="No memory."),
        RunResult(label="a", seed=2, top1=90.0, train_images_per_s=30.0),
    )
    one = ContenderResult(
        contender=Contender(label="a", model="cvt_13"), num_params=1, macs=2, runs=runs
    )
    assert one.scores == {0: 80.0, 2: 90.0}
    assert one.errors == {1: "No memory."}
    assert one.top1.mean == 85.0
    assert one.train_images_per_s == 20.0
    assert one.top5 is None
    plain = ContestResults(contenders=(one,), facts={"data": "digits"}).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["contenders"][0]["top1"]["mean"] == 85.0
    assert "top5" not in plain["contenders"][0]
    assert plain["contenders"][0]["runs"][1] == {
        "label": "a",
        "seed": 1,
        "hardware": "",
        "error": "No memory.",
    }


def test_every_field_of_a_run_has_a_column(tmp_path):
    ResultsFolder(tmp_path, COMPARISON).write([])
    header = (tmp_path / "results.csv").read_text().strip().split(",")
    assert header == [each.name for each in fields(RunResult)]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "label,seed\nx\n", "\0"])
def test_a_damaged_table_is_a_sentence(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match="not a table of a comparison's runs"):
        ResultsFolder(tmp_path, COMPARISON)


def test_damaged_measurements_are_a_sentence(tmp_path):
    for text in ("{", "[]", "[" * 2000, "1" * 5000):
        (tmp_path / "measured.json").write_text(text)
        with pytest.raises(UserError, match=r"measured\.json"):
            Ledger(ResultsFolder(tmp_path, COMPARISON), None)


def test_a_damaged_comparison_is_a_sentence(tmp_path):
    contest = {"contenders": {"a": {}}, "seeds": 1}
    for text in (
        "contenders: []",
        "[",
        "contenders: {a: {}}\nseeds: x",
        "contenders: {a: [1]}",
        "\x00",
    ):
        (tmp_path / "contest.yaml").write_text(text)
        with (
            pytest.raises(UserError, match=str(tmp_path)),
            results_folder(tmp_path, COMPARISON, contest),
        ):
            raise AssertionError


@pytest.mark.parametrize("text", [None, "{}", "[]", "{", '{"best_top1": "high", "bad": []}'])
def test_a_damaged_run_is_a_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        read_run(tmp_path, label="a", seed=0, updates=1, batch_size=1, hardware="a machine")


def test_a_run_is_finished_by_its_accuracy():
    run = RunResult(label="a", seed=0, error="No.")
    assert not run.is_finished
    assert replace(run, top1=0.0).is_finished


@pytest.mark.parametrize(
    ("classes", "split", "words"),
    [
        (5, "test", "Top-5 is left out: pets has 5 classes, and it takes 6"),
        (6, "test", None),
        (6, "validation", "Top-5 is left out: it is measured on a test split"),
    ],
)
def test_top5_is_left_out_with_a_reason(classes, split, words):
    facts = {"data": "pets", "classes": classes, "split": split, "image_size": 32}
    notes = [note for note in notes_of((), facts, config_of(), Measured()) if "Top-5" in note]
    assert len(notes) == (words is not None)
    assert not notes or notes[0].startswith(words)


# --- The plot.

points = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=9)


@given(points)
def test_the_front_is_what_nothing_dominates(found):
    def dominates(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    front = pareto_front(found)
    assert set(front) == {
        i for i, each in enumerate(found) if not any(dominates(other, each) for other in found)
    }
    assert [found[i] for i in front] == sorted(found[i] for i in front)


def result(label, cost, scores):
    return ContenderResult(
        contender=Contender(label=label, model="cvt_nano_32"),
        num_params=cost,
        macs=10 * cost,
        runs=tuple(RunResult(label=label, seed=i, top1=top1) for i, top1 in enumerate(scores)),
    )


def results(*found):
    facts = {"data": "digits", "classes": 10, "split": "test", "num_images": 400,
             "budget": "3 epochs", "seeds": 2, "image_size": 16, "batch_size": 64,
             "device": "cpu"}  # fmt: skip
    return ContestResults(contenders=found, facts=facts)


def test_an_image_is_drawn_of_what_was_finished(tmp_path):
    path = tmp_path / "accuracy.png"
    save_contest(path, results(result("a", 1000, ())))
    assert not path.exists()
    save_contest(path, results(result("a", 1000, (80.0,)), result("b" * 60, 2000, (81.0, 83.0))))
    with Image.open(path) as image:
        assert image.width == 960
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    kept, saved = [], Figure.savefig

    def keep(figure, path, **options):
        kept.append(figure)
        saved(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def test_every_contender_has_a_mark_of_its_own(tmp_path, figures):
    found = [result(f"network_{i}", 1000 * (i + 1), (70.0 + i,)) for i in range(30)]
    save_contest(tmp_path / "accuracy.png", results(*found))
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"network_{i}" for i in reversed(range(30))]  # the best first
    for axes in figures[0].axes:
        lines = [bar[0] for bar in axes.get_legend_handles_labels()[0]]
        assert len({(line.get_marker(), line.get_color()) for line in lines}) == 30


def test_one_seed_has_the_interval_of_its_images(tmp_path, figures):
    save_contest(tmp_path / "accuracy.png", results(result("a", 1000, (80.0,))))
    low, high = interval(80.0, 400)
    (bar,) = figures[0].axes[0].containers
    ((x, bottom), (_, top)) = bar[2][0].get_segments()[0]
    assert (x, bottom, top) == pytest.approx((10_000, low, high))
    assert "95 % interval of 400 images, one seed" in figures[0].get_suptitle()


def test_the_axis_does_not_zoom_into_noise(tmp_path, figures):
    """Two seeds that are a hundredth apart: the images leave two points open either way."""
    found = [result("a", 1000, (80.0, 80.01)), result("b", 2000, (80.02, 80.03))]
    save_contest(tmp_path / "accuracy.png", results(*found))
    bottom, top = figures[0].axes[0].get_ylim()
    assert bottom < interval(80.0, 400)[0]
    assert top > interval(80.03, 400)[1]
    assert "bars: standard deviation of 2 seeds" in figures[0].get_suptitle()
