"""Tables 1, 2 and 3 of the paper, and the sheet of facts: counted beside what is printed."""

import json
from dataclasses import replace

import pytest

from cvt import UserError
from cvt.bench.paper import sheet, sheets, table_1, table_2, table_3
from cvt.bench.paper.tables import TABLE_1, is_rounding
from cvt.parts.spec import Axes
from cvt.systems.catalog import ROWS, SYSTEMS, system_of
from cvt.systems.system import Facts

# --- Table 1, as the rows say it.

# The paper's printed words, once more and by hand.
PRINTED = {
    "vit": ("yes", "non-overlapping", "linear", "no"),
    "deit": ("yes", "non-overlapping", "linear", "no"),
    "cpvt": ("no (with PE generator)", "non-overlapping", "linear", "no"),
    "tnt": ("yes", "non-overlapping (patch + pixel)", "linear", "no"),
    "t2t": ("yes", "overlapping (concatenate)", "linear", "partial (tokenisation)"),
    "pvt": ("yes", "non-overlapping", "spatial reduction", "yes"),
    "cvt": ("no", "overlapping (convolution)", "convolution", "yes"),
}


def axes(name):
    found = ROWS[name].axes
    return found.position, found.embedding, found.projection, found.hierarchical


@pytest.mark.parametrize(
    ("name", "system"),
    [
        *(("vit_base_patch16_224", "vit"), ("vit_huge_patch14_224", "vit")),
        *(("deit_small_patch16_224", "deit"), ("deit_tiny_distilled_patch16_224", "deit")),
        *(("cpvt_tiny", "cpvt"), ("cpvt_base_gap", "cpvt"), ("tnt_s_patch16_224", "tnt")),
        *(("t2t_vit_14", "t2t"), ("t2t_vit_t_14", "t2t"), ("pvt_tiny", "pvt"), ("cvt_13", "cvt")),
        *((f"{system}_nano_32", system) for system in PRINTED),
    ],
)
def test_rows_have_the_printed_axes(name, system):
    assert axes(name) == PRINTED[system]


def test_every_line_of_the_table_is_derived_from_rows_and_agrees():
    (table,), plain = table_1()
    assert not table.notes
    assert [line["method"] for line in plain] == list(TABLE_1)
    for line in plain:
        assert line["derived"] == line["printed"]
    named = {name for line in plain for name in line["rows"]}
    assert {"vit_base_patch16_224", "deit_nano_32", "cvt_21", "t2t_vit_24"} <= named


def test_the_table_speaks_of_every_system_with_tokens_but_composites():
    spoken = {system for systems, _ in TABLE_1.values() for system in systems}
    assert spoken == set(PRINTED)
    assert spoken <= {system.name.lower() for system in SYSTEMS}


def test_twins_is_hierarchical_with_a_generator():
    assert axes("twins_pcpvt_small") == (
        *("no (with PE generator)", "non-overlapping"),
        *("spatial reduction", "yes"),
    )


def test_axes_follow_the_fields_and_not_the_name():
    row = ROWS["cvt_nano_32"]
    assert row.change(pos_embed=("none", "none", "table")).axes.position == "yes"
    assert row.change(pos_embed="conditional").axes.position == "no (with PE generator)"
    patches = row.change(embed_kernel=2, embed_padding=0)
    assert patches.axes.embedding == "non-overlapping"
    assert row.change(projection="linear").axes.projection == "linear"
    mixed = row.change(projection=("conv", "avg", "linear"))
    assert mixed.axes.projection == "convolution and average pooling"
    assert row.change(stages=row.stages[:1]).axes.hierarchical == "no"
    assert row.change(depth=(0, 0, 2)).axes.hierarchical == "partial (tokenisation)"


def test_a_cnn_has_no_line():
    assert ROWS["resnet18"].axes is None


def test_rows_of_the_users_own_get_a_line():
    (table,), plain = table_1(["cvt_nano_32+pos_embed=table"])
    assert plain[-1]["derived"]["position"] == "yes"
    assert Axes(**plain[-1]["derived"]) == ROWS["cvt_nano_32"].change(pos_embed="table").axes
    assert table.rows[-1][0] == "cvt_nano_32+pos_embed=table"


# --- Tables 2 and 3.


@pytest.fixture(scope="module")
def third():
    return table_3()


def test_table_2_stage_by_stage():
    tables, plain = table_2()
    assert [row["num_params"] for row in plain] == [19_997_480, 31_622_696, 277_196_392]
    assert [round(row["macs"] / 1e9, 3) for row in plain] == [4.566, 7.178, 60.917]
    assert [row["published_params"] for row in plain] == [19.98, 31.54, 276.7]
    assert [row["published_gmacs"] for row in plain] == [4.53, 7.13, 60.86]
    for row in plain:
        grids = [list(stage["grid"]) for stage in row["stages"]]
        assert grids == [[side, side] for side in row["published_grids"]]
    params = [[stage["num_params"] for stage in row["stages"]] for row in plain]
    assert params == [
        [61_696, 1_013_568, 18_536_448],
        [61_696, 1_915_968, 29_259_264],
        [931_200, 15_555_840, 259_682_304],
    ]
    assert tables[1].rows[1][:5] == (
        "2", "28x28", "28x28", "3x3, 192, stride 2", "4 x (conv 3x3, H 3, D 192, R 4)",
    )  # fmt: skip
    assert tables[0].rows[3][5] == f"{768 + 385_000:,}"
    assert "-0.1 % (parameters) and -0.8 % (GFLOPs" in tables[0].notes[0]


# GMACs to three digits.
COUNTED = {
    "ResNet-50": (25_557_032, 4.089),
    "ResNet-101": (44_549_160, 7.801),
    "ResNet-152": (60_192_808, 11.514),
    "DeiT-S": (22_050_664, 4.599),
    "DeiT-B": (86_567_656, 17.564),
    "PVT-Small": (24_485_864, 3.816),
    "PVT-Medium": (44_208_104, 6.659),
    "PVT-Large": (61_369_320, 9.814),
    "T2T-ViTt-14": (21_541_070, 6.089),
    "T2T-ViTt-19": (39_172_942, 9.785),
    "T2T-ViTt-24": (64_101_454, 14.967),
    "TNT-S": (23_768_584, 5.217),
    "TNT-B": (65_428_680, 14.049),
    "CvT-13": (19_997_480, 4.566),
    "CvT-21": (31_622_696, 7.178),
    "CvT-13 at 384": (19_997_480, 16.269),
    "CvT-21 at 384": (31_622_696, 24.849),
    "CvT-W24 at 384": (277_196_392, 194.222),
}


@pytest.mark.parametrize("label", COUNTED)
def test_table_3_counts(third, label):
    lines = [row for row in third[1] if row["label"] == label]
    assert lines
    for row in lines:
        assert (row["num_params"], round(row["macs"] / 1e9, 3)) == COUNTED[label]


def test_vit_at_384(third):
    rows = {row["label"]: row for row in third[1] if row["group"] == "transformer"}
    assert rows["ViT-B/16"]["num_params"] == 86_859_496
    assert round(rows["ViT-B/16"]["macs"] / 1e9, 2) == 55.48
    assert rows["ViT-L/16"]["num_params"] == 304_715_752


def test_what_differs_beyond_rounding_has_a_reason(third):
    (table,), plain = third
    apart = {row["label"]: row["apart"] for row in plain if row["apart"]}
    assert apart["CvT-W24 at 384"] == ["GMACs"]  # 193.2 printed, 194.222 counted
    assert "DeiT-S" not in apart
    for row in plain:
        if row["apart"] or row["row"] is None:
            assert row["note"], row["label"]
            assert any(row["note"] in note for note in table.notes)


def test_models_that_are_not_here_are_lines_with_a_reason(third):
    missing = {row["label"]: row for row in third[1] if row["row"] is None}
    assert set(missing) == {"CvT-13-NAS", "BiT-M", "ViT-H/16"}
    assert missing["CvT-13-NAS"]["top1"] == 82.2
    assert len(third[0][0].rows) == 27


# --- The sheet of facts.


@pytest.fixture
def published(monkeypatch):
    """`published(name, **facts)`: gives a row other published figures."""

    def give(name, **facts):
        system = system_of(name)
        told = replace(
            system, facts={name: Facts(num_params=1, gmacs=1.0, source="a page", **facts)}
        )
        monkeypatch.setattr(sheets, "system_of", lambda _: told)

    return give


def rows_of(*names):
    return sheet(names)[1]


def text_of(*names):
    return sheet(names)[0][0].to_markdown()


def test_counts_are_counted():
    first, second = rows_of("cvt_13", "deit_small_patch16_224")
    assert (first["num_params"], first["size"]) == (19_997_480, [224, 224])
    assert round(first["macs"] / 1e9, 3) == 4.566
    assert second["num_params"] == 22_050_664
    json.dumps([first, second])


def test_what_is_never_trained_is_said():
    """T2T-ViT-7: 197 x 256 fixed positions and two performers' 32 x 64 directions."""
    (row,) = rows_of("t2t_vit_7")
    assert (row["num_params"], row["num_frozen"]) == (4_310_222, 197 * 256 + 2 * 32 * 64)
    assert "54,528" in text_of("t2t_vit_7")


def test_figures_that_differ_beyond_rounding_are_both_said_with_the_reason(published):
    published("cvt_13", published_params=19.98, published_gmacs=4.6, top1=81.6, note="Because.")
    text = text_of("cvt_13")
    assert "19.98 M parameters are published and 19.997 counted: Because." in text
    assert "GMACs are published" not in text  # 4.566 is 4.6
    assert "| 81.6 |" in text
    assert "Published figures of cvt" in text
    assert "a page" in text


def test_a_difference_nobody_explained_says_so(published):
    published("cvt_13", published_params=20.5, published_gmacs=4.5)
    (row,) = rows_of("cvt_13")
    assert row["differs"] == ["published_params", "published_gmacs"]
    assert "4.5 GMACs are published and 4.566 counted: the reason is not known" in text_of("cvt_13")


def test_nothing_published_leaves_the_cells_empty(published):
    published("cvt_13")
    assert text_of("cvt_13").splitlines()[4].endswith("| - | - | - |")


def test_every_row_of_the_library_whose_published_figures_differ_says_why():
    for system in SYSTEMS:
        for name, facts in system.facts.items():
            if name not in system.rows:
                continue
            for published, computed in (
                (facts.published_params, facts.num_params / 1e6),
                (facts.published_gmacs, facts.gmacs),
            ):
                if published is not None and not is_rounding(published, computed):
                    assert facts.note, (name, published, computed)
            if facts.published_params or facts.published_gmacs or facts.top1:
                assert facts.source, name


@pytest.mark.parametrize(
    ("published", "computed", "same"),
    [
        (22, 22.05, True),
        (22.0, 22.06, False),
        (4.6, 4.599, True),
        (19.98, 19.997, False),
        (25, 24.486, False),
        (61, 61.369, True),
        (15.0, 14.967, True),
        (25, 24.5, True),
    ],
)
def test_rounding(published, computed, same):
    assert is_rounding(published, computed) == same


def test_a_name_twice_is_one_line():
    assert len(rows_of("cvt_nano_32", "cvt_nano_32")) == 1


def test_mistakes_in_a_sheet():
    with pytest.raises(UserError, match="Unknown model 'cvt_31'"):
        sheet(["cvt_13", "cvt_31"])
    with pytest.raises(UserError, match="Got no model"):
        sheet([])
