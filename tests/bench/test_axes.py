"""Table 1 of the paper, as the rows say it."""

import pytest

from cvt.bench.paper.sheets import table_1
from cvt.bench.paper.tables import TABLE_1
from cvt.parts.spec import Axes
from cvt.systems.catalog import ROWS, SYSTEMS

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
    block, plain = table_1()
    assert not block.notes
    assert [line["method"] for line in plain] == [line.label for line in TABLE_1]
    for line in plain:
        assert line["derived"] == line["printed"]
    named = {name for line in plain for name in line["rows"]}
    assert {"vit_base_patch16_224", "deit_nano_32", "cvt_21", "t2t_vit_24"} <= named


def test_the_table_speaks_of_every_system_with_tokens_but_composites():
    spoken = {system for line in TABLE_1 for system in line.systems}
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
    block, plain = table_1(["cvt_nano_32+pos_embed=table"])
    assert plain[-1]["derived"]["position"] == "yes"
    assert Axes(**plain[-1]["derived"]) == ROWS["cvt_nano_32"].change(pos_embed="table").axes
    assert block.rows[-1][0] == "cvt_nano_32+pos_embed=table"
