import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.bench.contest.contest import read_outcome
from cvt.bench.contest.results import Outcome, Results, Spread, Standing, notes_of
from cvt.bench.contest.runs import COMPARISON, Ledger
from cvt.bench.folder import ResultsFolder, results_folder
from cvt.bench.names import Contender
from cvt.errors import UserError
from trained import config_of

numbers = st.floats(0, 1e6, allow_nan=False)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)
outcomes = st.builds(
    Outcome,
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


@given(st.lists(outcomes, max_size=4))
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


def test_a_standing_leaves_failed_runs_out():
    runs = (
        Outcome(label="a", seed=0, top1=80.0, train_images_per_s=10.0),
        Outcome(label="a", seed=1, error="No memory."),
        Outcome(label="a", seed=2, top1=90.0, train_images_per_s=30.0),
    )
    one = Standing(contender=Contender(label="a", model="cvt_13"), num_params=1, macs=2, runs=runs)
    assert one.scores == {0: 80.0, 2: 90.0}
    assert one.errors == {1: "No memory."}
    assert one.top1.mean == 85.0
    assert one.median("train_images_per_s") == 20.0
    assert one.spread("top5") is None
    plain = Results(standings=(one,), facts={"data": "digits"}).to_dict()
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
    assert header == [each.name for each in fields(Outcome)]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "label,seed\nx\n", "\0"])
def test_a_damaged_table_is_a_sentence(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match="not a table of a comparison's runs"):
        ResultsFolder(tmp_path, COMPARISON)


def test_damaged_measurements_are_a_sentence(tmp_path):
    for text in ("{", "[]", "[" * 2000, "1" * 5000):
        (tmp_path / "measured.json").write_text(text)
        with pytest.raises(UserError, match=r"measured\.json"):
            Ledger(ResultsFolder(tmp_path, COMPARISON))


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
        read_outcome(
            Path(tmp_path), label="a", seed=0, updates=1, batch_size=1, hardware="a machine"
        )


def test_an_outcome_is_finished_by_its_accuracy():
    outcome = Outcome(label="a", seed=0, error="No.")
    assert not outcome.is_finished
    assert replace(outcome, top1=0.0).is_finished


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
    notes = [note for note in notes_of((), facts, config_of(), {}) if "Top-5" in note]
    assert len(notes) == (words is not None)
    assert not notes or notes[0].startswith(words)
