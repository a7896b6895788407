from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cvt.tables import cell, code, table, text

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
