import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.train.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5.0e-4", 5e-4),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("3", 3),
        (".inf", float("inf")),
        ("true", True),
        ("off", "off"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("~", None),
        ("'3'", "3"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: 1, b: {c: }}", {"a": 1, "b": {"c": None}}),
    ],
)
def test_scalars_are_what_people_mean(text, value):
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "the text is not YAML: "),
        ("a: 1\nb: 2\na: 3", "a stands twice in the mapping of line 1"),
        ("optim:\n  lr: 1\n  lr: 2", "lr stands twice in the mapping of line 2"),
        ("a: !!python/object/apply:os.getcwd []", "the text is not YAML: "),
    ],
)
def test_mistakes_are_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TRAPS = st.sampled_from(["off", "1e-3", "010", "1:30", "=", "<<", "0x1", "~", "", "True", "# x"])
PLAIN = st.recursive(
    SCALARS | TRAPS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(PLAIN)
def test_what_is_written_is_read_again_by_either_version(plain):
    assert read_yaml(write_yaml(plain)) == plain
    assert yaml.safe_load(write_yaml(plain)) == plain


def test_repeated_values_are_written_out():
    pair = [1, 2]
    assert "&" not in write_yaml({"a": pair, "b": pair})
