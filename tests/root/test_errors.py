import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.errors import MOST_SHOWN, UserError, did_you_mean, is_unsafe, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rose.jpg", "rose.jpg"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\n  99.99%  cat", "a\\n  99.99%  cat"),
        ("a\r\tb", "a\\r\\tb"),
        ("\x9b31m", "\\x9b31m"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("line\u2028line", "line\\u2028line"),
        ("caf\udce9", "caf\\xe9"),
        ("猫 Katze кот 😀 👩‍👩‍👧", "猫 Katze кот 😀 👩‍👩‍👧"),
        (b"bytes", "b'bytes'"),
    ],
)
def test_what_could_act_on_a_terminal_is_escaped(text, expected):
    assert shown(text) == expected


@given(st.text(st.characters()))
def test_shown_text_is_safe_once_and_for_all(text):
    safe = shown(text)
    assert not any(map(is_unsafe, safe))
    assert shown(safe) == safe


def test_long_text_says_how_long_it_was():
    text = "a" * 4_000_000 + "z"
    assert len(shown(text)) < MOST_SHOWN + 50
    assert "4,000,001 characters" in shown(text)
    assert shown(text).endswith("az")


def test_an_error_is_one_safe_line_and_its_details():
    error = UserError("There is no file a\nb\x1b[2J.", details=["- one\x07", "+ two"])
    assert str(error) == "There is no file a\\nb\\x1b[2J.\n- one\\x07\n+ two"


def test_an_endless_name_gets_no_hint():
    assert did_you_mean("x" * 10**6, ["cvt_13"]) == ""
    assert did_you_mean("cvt_31", ["cvt_13", "vit"]) == " Did you mean 'cvt_13'?"
