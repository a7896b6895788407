"""Pictures with other people's names in them: they are drawn as they are, and stop nothing."""

import warnings

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt import figures
from cvt.errors import Remark, UserError
from cvt.figures import drawing, if_possible, words

ODD = [
    "$", "$$", "under $5_", "price_$5_to_$10", r"$\frac{", r"\$x\$", "_hidden", "a\nb",
    "a\x1b[31mb", "\udcff", "<b>|`{}[]", ":car:", "%s %d", "x" * 300, "", " ",
]  # fmt: skip


def draw(path, name):
    with drawing(path, figsize=(3, 2), layout="constrained") as figure:
        axes = figure.subplots()
        axes.plot([0, 1], label=f"1  {words(name)}")
        axes.legend(title=words(name))
        axes.set_title(words(name))
        axes.set_xticks([0, 1], [words(name)] * 2)
    return axes.get_title()


@pytest.mark.parametrize("name", ODD)
def test_names_are_drawn_as_they_are(tmp_path, name):
    title = draw(tmp_path / "a.png", name)
    assert title == words(name)
    assert len(title) <= 60
    assert title.isprintable()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (450, 300)


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=20))
@settings(max_examples=25, deadline=None)
def test_any_name_can_be_drawn(tmp_path_factory, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Remark)
        draw(tmp_path_factory.mktemp("any") / "a.png", name)


def test_a_formula_would_look_otherwise(tmp_path):
    draw(tmp_path / "a.png", "$x$")
    with drawing(tmp_path / "b.png", figsize=(3, 2), layout="constrained") as figure:
        assert figure.text(0, 0, "$x$").get_parse_math() is False
    assert matplotlib.rcParams["text.parse_math"]


def test_letters_without_a_font_are_one_remark(tmp_path, monkeypatch):
    """Thai in DejaVu Sans alone, as on a machine with no other font."""
    monkeypatch.setattr(figures, "_families", lambda: ["DejaVu Sans"])
    monkeypatch.setattr("cvt.errors._remarked", set())
    with pytest.warns(Remark, match="letters of names are drawn as boxes") as caught:
        draw(tmp_path / "a.png", "แมว")
    draw(tmp_path / "b.png", "แมว")
    assert len(caught) == 1
    assert (tmp_path / "b.png").exists()


def test_what_cannot_be_drawn_or_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"Cannot draw .*a\.nothing"):
        draw(tmp_path / "a.nothing", "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        draw(tmp_path / "file" / "a.png", "a")
    with pytest.raises(UserError, match="too large"), drawing(tmp_path / "b.png", figsize=(1e6, 1)):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_picture_that_is_an_extra_costs_a_remark(tmp_path, monkeypatch):
    monkeypatch.setattr("cvt.errors._remarked", set())
    (tmp_path / "file").write_text("")
    with pytest.warns(Remark, match="There is no plot: Cannot write"), if_possible():
        draw(tmp_path / "file" / "a.png", "a")
