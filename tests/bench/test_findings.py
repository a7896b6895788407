"""Trained ablations beside the paper, and what they leave in a folder."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from cvt.bench.contest.results import Outcome, Results, Standing
from cvt.bench.names import read_base
from cvt.bench.paper.ablation import make_ablation
from cvt.bench.paper.findings import contenders_of, count, counted_block, judge, write_report

TOP1 = {
    "cvt_nano_32": [80.0, 81.0, 82.0],
    "cvt_nano_32+kv_stride=1": [81.0, 82.1, 82.9],  # +1.0, +1.1, +0.9
    "cvt_nano_32+projection=linear": [79.0, 82.0, None],  # -1, +1
    "cvt_nano_32+projection=[conv,linear,linear]": [79.0, None, None],
    "cvt_nano_32+projection=[conv,conv,linear]": [None, None, None],
}
FACTS = {"data": "torch/cifar10", "split": "test", "budget": "3 epochs", "image_size": 32}


@pytest.fixture
def ablations():
    base = read_base("cvt_nano_32")
    return [make_ablation(table, base) for table in (7, 8)]


@pytest.fixture
def results(ablations):
    def outcome(label, seed, top1):
        return Outcome(label=label, seed=seed, top1=top1, error="" if top1 else "It broke.")

    standings = tuple(
        Standing(
            contender=contender,
            num_params=1000,
            macs=2_000_000,
            runs=tuple(outcome(contender.label, *run) for run in enumerate(TOP1[contender.label])),
        )
        for contender in contenders_of(ablations)
    )
    return Results(standings=standings, facts=FACTS, notes=("A note.",))


def test_differences_are_paired_with_the_reference(ablations, results):
    one, two = judge(ablations[0], results)
    assert two.is_reference
    assert (two.difference, two.printed_difference, two.signs) == (None, None, "")
    assert one.difference.mean == pytest.approx(1.0)
    assert one.difference.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert one.printed_difference == pytest.approx(0.7)
    assert one.signs == "same sign"
    none, first, second, every = judge(ablations[1], results)
    assert none.difference.per_seed == {0: -1.0, 1: 1.0}
    assert none.signs == "no sign, not resolved"
    assert first.signs == "same sign, one seed"
    assert (second.difference, second.signs) == (None, "")
    assert every.is_reference


def test_the_folder(ablations, results, tmp_path):
    report = write_report(tmp_path, ablations, results)
    page = (tmp_path / "ablation.md").read_text()
    assert (
        "| stride 1 | kv_stride=1 | 1,000 | 2.0 | 82.00 ± 0.95 | +1.00 | +0.75 to +1.25 |" in page
    )
    assert "| +0.70 | same sign |" in page
    assert "-12.71 to +12.71 (2 seeds)" in page
    assert "| one seed | -0.80 | same sign, one seed |" in page
    assert "It broke." in page
    assert "paired over 3 seeds" in page
    assert page.endswith("- A note.\n")
    assert len(report.blocks) == 2
    with open(tmp_path / "ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows][:2] == ["stride 1", "stride 2"]
    assert float(rows[0]["difference"]) == pytest.approx(1.0)
    assert rows[0]["resolved"] == "True"
    assert json.loads(rows[0]["scores"]) == {"0": 81.0, "1": 82.1, "2": 82.9}
    assert rows[4]["difference"] == ""
    with Image.open(tmp_path / "ablation.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_wide_intervals_do_not_press_the_points_together(ablations, results, tmp_path, monkeypatch):
    """Differences reach 1.1 points, an interval of two seeds 12.7: the axis ends before that."""
    figures = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **_: figures.append(figure)
    )
    monkeypatch.setattr("cvt.files._flush", lambda path: path.touch())
    write_report(tmp_path, ablations, results)
    for axes in figures[0].axes:
        assert axes.get_xlim() == pytest.approx((-2.5 * 1.1, 2.5 * 1.1))
    arrows = [line.get_marker() for axes in figures[0].axes for line in axes.lines]
    assert (arrows.count("<"), arrows.count(">")) == (1, 1)


def test_one_seed_is_said_to_say_nothing(ablations, results, tmp_path):
    first = Results(
        standings=tuple(
            Standing(contender=s.contender, num_params=1, macs=1, runs=s.runs[:1])
            for s in results.standings
        ),
        facts=FACTS,
    )
    assert "One seed says nothing" in write_report(tmp_path, ablations, first).notes[0]


def test_nothing_trained_is_still_a_report(ablations, results, tmp_path):
    empty = Results(
        standings=tuple(
            Standing(contender=s.contender, num_params=1, macs=1) for s in results.standings
        ),
        facts=FACTS,
    )
    report = write_report(tmp_path, ablations, empty)
    assert all(finding.difference is None for findings in report.tables for finding in findings)


def test_for_machines(ablations, results):
    plain = [each.to_dict() for each in judge(ablations[0], results)]
    json.dumps(plain)
    assert plain[0]["difference"]["resolved"] is True
    assert plain[1]["reference"] is True
    assert "difference" not in plain[1]


def test_the_papers_counts_stand_beside_its_own_base_only():
    rows = counted_block(count(make_ablation(7, read_base("cvt_13")))).rows
    assert rows[0] == (
        "stride 1", "kv_stride=1", "19,997,480", "6.643", "20", "6.55", "82.3", "+0.70",
    )  # fmt: skip
    rows = counted_block(count(make_ablation(7, read_base("cvt_nano_32")))).rows
    assert rows[0][4:] == ("-", "-", "82.3", "+0.70")
    assert rows[1][0] == "stride 2 (reference)"
