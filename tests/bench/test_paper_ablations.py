"""Tables 5 to 8: what is changed in which base, and what is counted or trained beside the paper."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from cvt import UserError
from cvt.bench.contest import ContenderResult, ContestResults, RunResult
from cvt.bench.names import read_base, read_contender
from cvt.bench.paper import (
    Difference,
    VariantResult,
    compare_signs,
    contenders_of,
    count,
    judge,
    legend,
    make_ablation,
    paired_difference,
    write_report,
)
from cvt.systems.catalog import ROWS

PUBLISHED = {
    5: {"every stage": 81.5, "first stage": 81.4, "last stage": 81.4, "none": 81.6},
    6: {
        "patches, no position": 80.7,
        "patches, position": 81.1,
        "convolution, position": 81.4,
        "convolution, no position": 81.6,
    },
    7: {"stride 1": 82.3, "stride 2": 81.6},
    8: {"none": 80.6, "stage 1": 80.8, "stages 1, 2": 81.0, "stages 1, 2, 3": 81.6},
}


def ablation(table, base="cvt_13"):
    return make_ablation(table, read_base(base))


def by_words(table, base="cvt_13"):
    return {variant.words: variant for variant in ablation(table, base).variants}


@pytest.mark.parametrize("table", PUBLISHED)
def test_the_papers_lines(table):
    made = ablation(table)
    printed = {variant.words: variant.published.top1 for variant in made.variants}
    assert printed == PUBLISHED[table]
    assert made.reference.contender.model_args == {}
    for variant in made.variants:
        result = VariantResult(ablation=made, variant=variant, num_params=1, macs=1)
        expected = None if result.is_reference else pytest.approx(variant.published.top1 - 81.6)
        assert result.published_difference == expected


def test_deit_without_positions():
    made = ablation(5, "deit_small_patch16_224")
    assert [variant.published.top1 for variant in made.variants] == [79.8, 78.0]
    assert made.reference is made.variants[0]
    with_table, without = count(made).variants
    assert (with_table.num_params, without.num_params) == (22_050_664, 22_050_664 - 197 * 384)
    assert without.published_difference == pytest.approx(-1.8)


# A table has a row for each token of the grid, and in the last stage one for the class token.
TABLES = (56 * 56 * 64, 28 * 28 * 192, (14 * 14 + 1) * 384)
# Kernels of 7, 3, 3 instead of 4, 2, 2.
KERNELS = 64 * 3 * (49 - 16) + 192 * 64 * (9 - 4) + 384 * 192 * (9 - 4)
CVT_13 = 19_997_480


def test_counts_of_positions():
    found = {each.variant.words: each.num_params - CVT_13 for each in count(ablation(5)).variants}
    assert found == {
        "every stage": sum(TABLES),
        "first stage": TABLES[0],
        "last stage": TABLES[2],
        "none": 0,
    }


def test_counts_of_embeddings_and_why_the_printed_ones_are_less():
    """The paper starts from 19.98 M; with tables in two stages its four figures follow."""
    made = ablation(6)
    found = [each.num_params for each in count(made).variants]
    assert found == [CVT_13 - KERNELS, CVT_13 - KERNELS + sum(TABLES), CVT_13 + sum(TABLES), CVT_13]
    printed = [variant.published.params for variant in made.variants]
    assert printed == [19.5, 19.9, 20.3, 20.0]
    two = sum(TABLES[:2])
    as_printed = [19.98e6 - KERNELS, 19.98e6 - KERNELS + two, 19.98e6 + two, 19.98e6]
    assert [round(each / 1e6, 1) for each in as_printed] == printed
    assert "stages 1 and 2 alone (0.351 M)" in made.notes[0]
    assert two == 351_232


def test_macs_of_strides():
    one, two = count(ablation(7)).variants
    assert [round(each.macs / 1e9, 3) for each in (one, two)] == [6.643, 4.566]
    assert [each.variant.published.gmacs for each in (one, two)] == [6.55, 4.53]
    assert one.num_params == two.num_params == CVT_13


def test_counts_of_projections():
    """Each stage loses three depthwise kernels and norms a block; keys are read everywhere."""
    found = count(ablation(8)).variants
    lost = [depth * 3 * dim * (9 + 2) for dim, depth in ((64, 1), (192, 2), (384, 10))]
    assert [CVT_13 - each.num_params for each in found] == [
        sum(lost), sum(lost[1:]), lost[2], 0,
    ]  # fmt: skip
    macs = [each.macs for each in found]
    assert macs == sorted(macs, reverse=True)


def test_the_base_is_one_contender_in_all_tables():
    ablations = [ablation(table, "cvt_nano_32") for table in (5, 6, 7, 8)]
    labels = [contender.label for contender in contenders_of(ablations)]
    assert labels.count("cvt_nano_32") == 1
    # 4 + 4 + 2 + 4 variants, of which the base is in all and positions in every stage in two.
    assert len(labels) == len(set(labels)) == 14 - 3 - 1
    assert sum("+pos_embed=table" in label for label in labels) == 1


BASES = ["cvt_13", "cvt_nano_32", "pvt_nano_32", "deit_nano_32", "vit_nano_32", "cpvt_nano_32",
         "t2t_nano_32", "pvt_tiny", "twins_pcpvt_small", "cvt_nano_32+kv_stride=1"]  # fmt: skip

REFUSED = {(6, "t2t_nano_32"), *((7, f"{name}_nano_32") for name in ("deit", "vit", "cpvt", "t2t"))}


@given(base=st.sampled_from(BASES), table=st.sampled_from([5, 6, 7, 8]))
def test_any_row_of_stages_is_a_base_or_refused_in_a_sentence(base, table):
    if (table, base) in REFUSED:
        with pytest.raises(UserError, match=f"Table {table} varies .* take "):
            ablation(table, base)
        return
    made = ablation(table, base)
    specs = [variant.spec for variant in made.variants]
    assert len(specs) == len({str(spec) for spec in specs}) > 1
    assert made.reference in made.variants
    for variant in made.variants:
        again = read_contender(variant.contender.label)
        assert ROWS[again.model].change(**again.model_args) == variant.spec
        assert variant.spec.grids(variant.spec.img_size) == made.base.spec.grids(
            made.base.spec.img_size
        )


def test_pvt_keeps_its_own_projection_and_strides():
    own = [stage.kv_stride for stage in ROWS["pvt_tiny"].stages]
    strides = by_words(7, "pvt_tiny")
    assert [s.kv_stride for s in strides["stride 1"].spec.stages] == [1, 1, 1, 1]
    reference = ablation(7, "pvt_tiny").reference
    assert [s.kv_stride for s in reference.spec.stages] == own
    lines = by_words(8, "pvt_tiny")
    assert lines["none"].published.top1 == 80.6
    assert lines["stage 1"].published.top1 is None
    kinds = {stage.projection for stage in lines["none"].spec.stages}
    assert kinds == {"linear"}


def test_a_row_with_a_generator_keeps_it_as_a_line_of_its_own():
    found = by_words(5, "cpvt_nano_32")
    assert [v.spec.stages[0].pos_embed for v in found.values()] == ["table", "none", "conditional"]
    assert found["as the row has it (conditional)"].published.top1 is None


def test_a_patch_embedding_gets_the_overlap_of_cvt():
    stage = by_words(6, "deit_nano_32")["convolution, position"].spec.stages[0]
    stride = ROWS["deit_nano_32"].stages[0].embed_stride
    assert (stage.embed_kernel, stage.embed_padding) == (2 * stride - 1, stride - 1)
    patches = by_words(6)["patches, position"].spec.stages
    assert [(s.embed_kernel, s.embed_stride, s.embed_padding) for s in patches] == [
        (4, 4, 0), (2, 2, 0), (2, 2, 0),
    ]  # fmt: skip


def test_a_linear_row_gets_convolutions():
    made = ablation(8, "vit_nano_32")
    assert [v.spec.stages[0].projection for v in made.variants] == ["linear", "conv"]
    assert [v.published.top1 for v in made.variants] == [80.6, 81.6]


def test_positions_go_where_blocks_are():
    made = ablation(5, "t2t_nano_32")
    for variant in made.variants:
        embedding_only = [s.pos_embed for s in variant.spec.stages if not s.depth]
        assert set(embedding_only) == {"none"}


def test_a_run_and_a_config_are_bases(tmp_path):
    (tmp_path / "config.yaml").write_text("model: cvt_nano_32\nmodel_args: {kv_stride: 1}")
    for text in (str(tmp_path), str(tmp_path / "config.yaml"), "cvt_nano_32+kv_stride=1"):
        made = make_ablation(7, read_base(text))
        assert made.base.label == "cvt_nano_32+kv_stride=1"
        assert made.variants[0].contender.label == "cvt_nano_32+kv_stride=1"
        assert [s.kv_stride for s in made.reference.spec.stages] == [2, 2, 2]


@pytest.mark.parametrize(
    ("table", "base", "words"),
    [
        (5, "cvt_nan_32", "Unknown model 'cvt_nan_32'.*'cvt_nano_32'"),
        (5, "cvt_nano_32+kv_strid=1", "kv_strid.*kv_stride"),
        (5, "tnt_nano_32", "not made of stages"),
        (5, "resnet18", "not made of stages"),
        (6, "t2t_nano_32", "has soft splits"),
        (7, "vit_nano_32", r"take vit_nano_32\+projection=conv"),
        (5, "nowhere.yaml", "no config file nowhere.yaml"),
    ],
)
def test_what_is_no_base(table, base, words):
    with pytest.raises(UserError, match=words):
        ablation(table, base)


def test_a_config_without_a_model_is_no_base(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="names no model"):
        read_base(str(tmp_path / "x.yaml"))


# --- Differences paired over seeds.

SCORES = st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=1, max_size=6)


def test_three_seeds_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, error 1 / sqrt(3), Student's 4.302653 for two."""
    found = paired_difference({0: 81.0, 1: 84.0, 2: 86.0}, {2: 83.0, 0: 80.0, 1: 82.0})
    assert found.per_seed == {0: 1.0, 1: 2.0, 2: 3.0}
    assert found.mean == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert not found.is_resolved  # 2 - 2.48 < 0


def test_two_seeds_by_hand():
    """Differences 1 and 1.1: error 0.05, Student's 12.706205 for one degree of freedom."""
    found = paired_difference({0: 11.0, 1: 21.1}, {0: 10.0, 1: 20.0})
    assert found.standard_error == pytest.approx(0.05)
    assert found.half_width == pytest.approx(0.63531, rel=1e-4)
    assert found.is_resolved


@pytest.mark.parametrize(
    ("count", "quantile"), [(4, 3.182446), (5, 2.776445), (6, 2.570582), (10, 2.262157)]
)
def test_the_interval_is_students(count, quantile):
    """Quantiles as printed in any table of t at 95 %, two-sided."""
    ours = {seed: float(seed % 2) for seed in range(count)}
    found = paired_difference(ours, dict.fromkeys(ours, 0.0))
    assert found.half_width / found.standard_error == pytest.approx(quantile, abs=1e-6)


def test_pairing_takes_out_what_seeds_share():
    """Seeds differ by ten points, the difference within a seed hardly does."""
    reference = {0: 60.0, 1: 70.0, 2: 80.0}
    found = paired_difference({0: 60.5, 1: 70.4, 2: 80.6}, reference)
    assert found.is_resolved
    assert found.half_width < 0.3


def test_one_seed_has_no_uncertainty():
    found = paired_difference({4: 81.0}, {4: 80.0, 5: 90.0})
    assert (found.mean, found.standard_error, found.half_width) == (1.0, None, None)
    assert not found.is_resolved
    assert compare_signs(found, 0.7) == "same sign, one seed"


def test_no_common_seed_is_no_difference():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@given(ours=SCORES, reference=SCORES)
def test_only_common_seeds_count_and_swapping_turns_the_sign(ours, reference):
    found, swapped = paired_difference(ours, reference), paired_difference(reference, ours)
    common = ours.keys() & reference.keys()
    assert (found is None) == (not common)
    if found is None:
        return
    assert found.per_seed.keys() == common
    assert found.mean == pytest.approx(-swapped.mean)
    assert found.half_width == pytest.approx(swapped.half_width)
    assert min(found.per_seed.values()) - 1e-9 <= found.mean <= max(found.per_seed.values()) + 1e-9


@given(ours=st.lists(st.floats(0, 100), min_size=2, max_size=6), shift=st.floats(-10, 10))
def test_a_shift_shared_by_all_runs_changes_nothing(ours, shift):
    scores, other = dict(enumerate(ours)), dict(enumerate(reversed(ours)))
    found = paired_difference(scores, other)
    moved = paired_difference(
        {seed: score + shift for seed, score in scores.items()},
        {seed: score + shift for seed, score in other.items()},
    )
    assert moved.mean == pytest.approx(found.mean, abs=1e-9)
    assert moved.half_width == pytest.approx(found.half_width, abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "half_width", "published", "words"),
    [
        (-0.5, 0.2, -0.1, "same sign"),
        (0.5, 0.2, -0.1, "opposite sign"),
        (0.5, 0.5, -0.1, "opposite sign, not resolved"),
        (-0.1, 0.3, -0.9, "same sign, not resolved"),
        (0.0, 0.3, -0.9, "no sign, not resolved"),
    ],
)
def test_signs(mean, half_width, published, words):
    ours = Difference(mean=mean, per_seed={}, standard_error=0.1, half_width=half_width)
    assert compare_signs(ours, published) == words


# --- Trained ablations beside the paper, and what they leave in a folder.

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
    def run(label, seed, top1):
        return RunResult(label=label, seed=seed, top1=top1, error="" if top1 else "It broke.")

    contenders = tuple(
        ContenderResult(
            contender=contender,
            num_params=1000,
            macs=2_000_000,
            runs=tuple(run(contender.label, *each) for each in enumerate(TOP1[contender.label])),
        )
        for contender in contenders_of(ablations)
    )
    return ContestResults(contenders=contenders, facts=FACTS, notes=("A note.",))


def test_differences_are_paired_with_the_reference(ablations, results):
    one, two = judge(ablations[0], results).variants
    assert two.is_reference
    assert (two.difference, two.published_difference, two.signs) == (None, None, None)
    assert one.difference.mean == pytest.approx(1.0)
    assert one.difference.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert one.published_difference == pytest.approx(0.7)
    assert one.signs == "same sign"
    none, first, second, every = judge(ablations[1], results).variants
    assert none.difference.per_seed == {0: -1.0, 1: 1.0}
    assert none.signs == "no sign, not resolved"
    assert first.signs == "same sign, one seed"
    assert (second.difference, second.signs) == (None, None)
    assert every.is_reference


def test_the_folder(ablations, results, tmp_path):
    report = [judge(each, results) for each in ablations]
    write_report(tmp_path, report, results)
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
    figures, saved = [], Figure.savefig

    def keep(figure, path, **options):
        figures.append(figure)
        saved(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    write_report(tmp_path, [judge(each, results) for each in ablations], results)
    for axes in figures[0].axes:
        assert axes.get_xlim() == pytest.approx((-2.5 * 1.1, 2.5 * 1.1))
    arrows = [line.get_marker() for axes in figures[0].axes for line in axes.lines]
    assert (arrows.count("<"), arrows.count(">")) == (1, 1)


def test_one_seed_is_said_to_say_nothing(ablations, results, tmp_path):
    first = ContestResults(
        contenders=tuple(
            ContenderResult(contender=s.contender, num_params=1, macs=1, runs=s.runs[:1])
            for s in results.contenders
        ),
        facts=FACTS,
    )
    assert "One seed says nothing" in legend(first)[0]


def test_nothing_trained_is_still_a_report(ablations, results, tmp_path):
    empty = ContestResults(
        contenders=tuple(
            ContenderResult(contender=s.contender, num_params=1, macs=1) for s in results.contenders
        ),
        facts=FACTS,
    )
    report = [judge(each, empty) for each in ablations]
    write_report(tmp_path, report, empty)
    assert all(line.difference is None for each in report for line in each.variants)


def test_for_machines(ablations, results):
    plain = [each.to_dict() for each in judge(ablations[0], results).variants]
    json.dumps(plain)
    assert plain[0]["difference"]["resolved"] is True
    assert plain[1]["reference"] is True
    assert "difference" not in plain[1]


def test_the_papers_counts_stand_beside_its_own_base_only():
    rows = count(ablation(7)).table.rows
    assert rows[0] == (
        "stride 1", "kv_stride=1", "19,997,480", "6.643", "20", "6.55", "82.3", "+0.70",
    )  # fmt: skip
    rows = count(ablation(7, "cvt_nano_32")).table.rows
    assert rows[0][4:] == ("-", "-", "82.3", "+0.70")
    assert rows[1][0] == "stride 2 (reference)"
