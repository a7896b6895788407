"""The sheet of facts: counted at the call, beside what was published."""

import json
from dataclasses import replace

import pytest

from cvt import UserError
from cvt.bench.paper import sheets as sheet
from cvt.bench.paper.sheets import sheet_rows, sheet_text
from cvt.bench.tables import is_rounding
from cvt.systems.catalog import system_of
from cvt.systems.system import Facts


@pytest.fixture
def published(monkeypatch):
    """`published(name, **facts)`: gives a row other published figures."""

    def give(name, **facts):
        system = system_of(name)
        told = replace(
            system, facts={name: Facts(num_params=1, gmacs=1.0, source="a page", **facts)}
        )
        monkeypatch.setattr(sheet, "system_of", lambda _: told)

    return give


def test_counts_are_counted():
    first, second = sheet_rows(["cvt_13", "deit_small_patch16_224"])
    assert (first["num_params"], first["size"]) == (19_997_480, [224, 224])
    assert round(first["macs"] / 1e9, 3) == 4.566
    assert second["num_params"] == 22_050_664
    json.dumps([first, second])


def test_what_is_never_trained_is_said():
    """T2T-ViT-7: 197 x 256 fixed positions and two performers' 32 x 64 directions."""
    (row,) = sheet_rows(["t2t_vit_7"])
    assert (row["num_params"], row["num_frozen"]) == (4_310_222, 197 * 256 + 2 * 32 * 64)
    assert "54,528" in sheet_text(["t2t_vit_7"])


def test_figures_that_differ_beyond_rounding_are_both_said_with_the_reason(published):
    published("cvt_13", published_params=19.98, published_gmacs=4.6, top1=81.6, note="Because.")
    text = sheet_text(["cvt_13"])
    assert "19.98 M parameters are published and 19.997 counted: Because." in text
    assert "GMACs are published" not in text  # 4.566 is 4.6
    assert "| 81.6 |" in text
    assert "Published figures of cvt" in text
    assert "a page" in text


def test_a_difference_nobody_explained_says_so(published):
    published("cvt_13", published_params=20.5, published_gmacs=4.5)
    (row,) = sheet_rows(["cvt_13"])
    assert row["differs"] == ["published_params", "published_gmacs"]
    assert "4.5 GMACs are published and 4.566 counted: the reason is not known" in sheet_text(
        ["cvt_13"]
    )


def test_nothing_published_leaves_the_cells_empty(published):
    published("cvt_13")
    assert sheet_text(["cvt_13"]).splitlines()[4].endswith("| - | - | - |")


def test_every_row_of_the_library_whose_published_figures_differ_says_why():
    from cvt.systems.catalog import SYSTEMS

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
    assert len(sheet_rows(["cvt_nano_32", "cvt_nano_32"])) == 1


def test_mistakes():
    with pytest.raises(UserError, match="Unknown model 'cvt_31'"):
        sheet_rows(["cvt_13", "cvt_31"])
    with pytest.raises(UserError, match="Got no model"):
        sheet_rows([])
