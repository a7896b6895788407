"""Tables 5 to 8: what is changed in which base, counted, beside what the paper prints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt import UserError
from cvt.bench.names import read_base, read_contender
from cvt.bench.paper.ablation import make_ablation
from cvt.bench.paper.findings import contenders_of, count
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
    printed = {variant.words: variant.printed.top1 for variant in made.variants}
    assert printed == PUBLISHED[table]
    assert made.reference.contender.model_args == {}
    for variant in made.variants:
        expected = variant.printed.top1 - 81.6
        assert made.printed_difference(variant) == pytest.approx(expected)


def test_deit_without_positions():
    made = ablation(5, "deit_small_patch16_224")
    assert [variant.printed.top1 for variant in made.variants] == [79.8, 78.0]
    assert made.reference is made.variants[0]
    with_table, without = count(made)
    assert (with_table.num_params, without.num_params) == (22_050_664, 22_050_664 - 197 * 384)
    assert without.printed_difference == pytest.approx(-1.8)


# A table has a row for each token of the grid, and in the last stage one for the class token.
TABLES = (56 * 56 * 64, 28 * 28 * 192, (14 * 14 + 1) * 384)
# Kernels of 7, 3, 3 instead of 4, 2, 2.
KERNELS = 64 * 3 * (49 - 16) + 192 * 64 * (9 - 4) + 384 * 192 * (9 - 4)
CVT_13 = 19_997_480


def test_counts_of_positions():
    found = {each.variant.words: each.num_params - CVT_13 for each in count(ablation(5))}
    assert found == {
        "every stage": sum(TABLES),
        "first stage": TABLES[0],
        "last stage": TABLES[2],
        "none": 0,
    }


def test_counts_of_embeddings_and_why_the_printed_ones_are_less():
    """The paper starts from 19.98 M; with tables in two stages its four figures follow."""
    made = ablation(6)
    found = [each.num_params for each in count(made)]
    assert found == [CVT_13 - KERNELS, CVT_13 - KERNELS + sum(TABLES), CVT_13 + sum(TABLES), CVT_13]
    printed = [variant.printed.params for variant in made.variants]
    assert printed == [19.5, 19.9, 20.3, 20.0]
    two = sum(TABLES[:2])
    as_printed = [19.98e6 - KERNELS, 19.98e6 - KERNELS + two, 19.98e6 + two, 19.98e6]
    assert [round(each / 1e6, 1) for each in as_printed] == printed
    assert "stages 1 and 2 alone (0.351 M)" in made.notes[0]
    assert two == 351_232


def test_macs_of_strides():
    one, two = count(ablation(7))
    assert [round(each.macs / 1e9, 3) for each in (one, two)] == [6.643, 4.566]
    assert [each.variant.printed.gmacs for each in (one, two)] == [6.55, 4.53]
    assert one.num_params == two.num_params == CVT_13


def test_counts_of_projections():
    """Each stage loses three depthwise kernels and norms a block; keys are read everywhere."""
    found = count(ablation(8))
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
    assert lines["none"].printed.top1 == 80.6
    assert lines["stage 1"].printed is None
    kinds = {stage.projection for stage in lines["none"].spec.stages}
    assert kinds == {"linear"}


def test_a_row_with_a_generator_keeps_it_as_a_line_of_its_own():
    found = by_words(5, "cpvt_nano_32")
    assert [v.spec.stages[0].pos_embed for v in found.values()] == ["table", "none", "conditional"]
    assert found["as the row has it (conditional)"].printed is None


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
    assert [v.printed.top1 for v in made.variants] == [80.6, 81.6]


def test_positions_go_where_blocks_are():
    made = ablation(5, "t2t_nano_32")
    for variant in made.variants:
        embedding_only = [s.pos_embed for s in variant.spec.stages if not s.depth]
        assert set(embedding_only) == {"none"}


def test_a_run_and_a_config_are_bases(tmp_path):
    (tmp_path / "config.yaml").write_text("model: cvt_nano_32\nmodel_args: {kv_stride: 1}")
    for text in (str(tmp_path), str(tmp_path / "config.yaml"), "cvt_nano_32+kv_stride=1"):
        base = read_base(text)
        assert base.label == "cvt_nano_32+kv_stride=1"
        made = make_ablation(7, base)
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
def test_mistakes(table, base, words):
    with pytest.raises(UserError, match=words):
        ablation(table, base)


def test_a_config_without_a_model_is_no_base(tmp_path):
    (tmp_path / "x.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="names no model"):
        read_base(str(tmp_path / "x.yaml"))
