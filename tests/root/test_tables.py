from dataclasses import asdict, dataclass
from typing import Annotated

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cvt.errors import UserError
from cvt.plain import Range
from cvt.tables import Table, cell, code, read_csv, table, text, write_csv

# What people name folders and classes, and what Markdown, HTML and tables would make of it.
NASTY = "|`*_[]<>&\\~$#-+=!().12 \n\tab"
VALUES = st.text(st.sampled_from(NASTY), max_size=12)


def cells(lines):
    """What a reader of GitHub's Markdown sees in a table's cells."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse("\n".join(lines))
    assert [token.type for token in tokens if token.level == 0] == ["table_open", "table_close"]
    return [shown(token.children) for token in tokens if token.type == "inline"]


def shown(children):
    assert {child.type for child in children} <= {"text", "code_inline", "text_special"}
    return "".join(child.content for child in children)


@given(VALUES)
@example("a\\|b")
@example("`")
@example("\\")
@example("1. a")
def test_running_text_shows_the_value(value):
    tokens = MarkdownIt("commonmark").enable("strikethrough").parse(text(value))
    if not value.split():
        assert tokens == []
        return
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert shown(tokens[1].children) == " ".join(value.split())


@given(VALUES, VALUES)
@example("\\", "|")
@example("a`|``b", "\\|")
def test_tables_show_the_values_in_their_cells(one, other):
    lines = table(("plain", "code"), [(text(one), code(other)), ("x", "y")])
    if "\\|" in " ".join(other.split()):  # no table of Markdown's can show a backslash and a bar
        assert len(cells(lines)) == 6
        return
    assert cells(lines) == ["plain", "code", " ".join(one.split()), " ".join(other.split()),
                            "x", "y"]  # fmt: skip


def test_what_acts_on_a_terminal_is_escaped_in_any_form():
    strange = "a\x1b[2J\u202e\udcff\nb"
    for form in (text, cell, code):
        line = form(strange)
        assert not {"\x1b", "\u202e", "\udcff", "\n"} & set(line)
        line.encode()


@given(VALUES, VALUES)
def test_a_table_has_a_title_and_notes(one, other):
    written = Table(columns=("a", one), rows=((other, "b"),), title="T|1", notes=("1. note", one))
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(written.to_markdown(level=3))
    )
    inline = [shown(token.children) for token in tokens if token.type == "inline"]
    a, b = (" ".join(each.split()) for each in (one, other))
    assert inline == ["T|1", "a", a, b, "b", "1. note", *([a] if a else [])]
    assert [each.tag for each in tokens if each.type == "heading_open"] == ["h3"]


@dataclass(frozen=True, kw_only=True)
class Line:
    name: str
    count: Annotated[int, Range(0)]
    figure: float | None = None
    is_new: bool = False
    error: str = ""


LINES = [
    Line(name="a,b\n", count=1, figure=1 / 3),
    Line(name="", count=10**15, is_new=True, error='"no"'),
]


def test_rows_come_back_as_they_went(tmp_path):
    path = tmp_path / "rows.csv"
    write_csv(path, list(asdict(LINES[0])), map(asdict, LINES))
    assert read_csv(path, Line, "a table", "mend it") == LINES
    assert read_csv(tmp_path / "none.csv", Line, "a table", "mend it") == []
    write_csv(path, list(asdict(LINES[0])), map(asdict, LINES), digits=3)
    assert [each.figure for each in read_csv(path, Line, "a table", "mend it")] == [0.333, None]


def test_columns_may_be_more_or_those_with_defaults_fewer(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("more,count,name\nx,1,y\n")
    assert read_csv(path, Line, "a table", "mend it") == [Line(name="y", count=1)]


@pytest.mark.parametrize(
    "content",
    ["name\nx\n", "name,count\nx\n", "name,count\nx,1.5\n", "name,count\nx,-1\n", "name,count\nx,",
     "name,count,is_new\nx,1,perhaps\n", "name,count\n" + 'x' * 200_000 + ",1"],
)  # fmt: skip
def test_other_files_are_a_sentence(tmp_path, content):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"rows\.csv is not a table of lines \(.*\); mend it\.$"):
        read_csv(path, Line, "a table of lines", "mend it")
