from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.plain import (
    MOST_TEXT,
    MOST_YAML,
    Length,
    Range,
    check_values,
    from_plain,
    layer_from_plain,
    read_json,
    read_yaml,
    to_plain,
    write_yaml,
)


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
        ("a: !!int abc", "line 1 has the tag tag:yaml.org,2002:int"),
        ("a: !!timestamp abc", "the text is not YAML: "),
        ("a: &x [1]\nb: *x", "line 2 refers to another value"),
        ("a: &x [*x]", "line 1 refers to another value"),
        ("? [a]\n: 1", "a key of the mapping of line 1 is no single value"),
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


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int, int] = (3, 8, 8)
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Outer:
    model: str
    depth: Annotated[int, Range(1, 64)] = 1
    rate: Annotated[float, Range(above=0)] = 0.5
    share: Annotated[float, Range(0, below=1)] = 0.0
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    figures: dict[str, float] = field(default_factory=dict)
    more: list[int | str] = field(default_factory=list)


def test_plain_data_becomes_a_dataclass():
    plain = {"model": "m", "rate": 1, "inner": {"names": ["x"]}, "figures": {"top1": 3}}
    built = from_plain(Outer, plain, "the record")
    assert built == Outer("m", rate=1, inner=Inner(names=("x",)), figures={"top1": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "Got None for model in the record, expected text"),
        ({"depth": True}, "Got True for depth in the record, expected a whole number"),
        ({"depth": 100_000}, "Got 100000 for depth in the record, expected a number from 1 to 64"),
        ({"rate": 0}, "expected a number above 0"),
        ({"rate": float("nan")}, "Got nan for rate"),
        ({"rate": 10**400}, "a whole number of more than 20 digits"),
        ({"kind": "c"}, "expected one of 'a', 'b'"),
        ({"inner": []}, "for inner in the record, expected keys with values"),
        ({"inner": {"size": [1, 2]}}, "Got 2 values for inner.size in the record"),
        ({"inner": {"names": [1]}}, "Got 1 for inner.names in the record, expected text"),
        (
            {"inner": {"nmaes": []}},
            "unknown key 'inner.nmaes' in the record. Did you mean 'names'?",
        ),
        (
            {"share": 1.0},
            "Got 1.0 for share in the record, expected a number from 0 to less than 1",
        ),
        ({"figures": {"top1": "x" * 10**6}}, r"x\.\.\. \(1,000,002 characters\)"),
        ({"more": [[]]}, "expected a whole number or text"),
        ({"depht": 1}, "unknown key 'depht' in the record. Did you mean 'depth'?"),
    ],
)
def test_what_does_not_fit_a_field_is_named(change, message):
    with pytest.raises(UserError, match=message) as caught:
        from_plain(Outer, {"model": "m", **change}, "the record")
    assert len(str(caught.value)) < 500


def test_a_dataclass_becomes_plain_data():
    built = Outer("m", inner=Inner(names=("x",)))
    assert to_plain(built)["inner"] == {"size": [3, 8, 8], "names": ["x"]}
    assert from_plain(Outer, to_plain(built), "it") == built


def test_a_layer_has_what_was_said():
    plain = {"depth": 3, "rate": None, "inner": {"size": [1, 2, 3], "names": None}, "more": []}
    layer = {"depth": 3, "inner": {"size": (1, 2, 3)}, "more": []}
    assert layer_from_plain(Outer, plain, "it") == layer
    assert layer_from_plain(Outer, {"inner": {"names": None}}, "it") == {}
    with pytest.raises(UserError, match=r"Got 1 for inner.names in it, expected text"):
        layer_from_plain(Outer, {"inner": {"names": [1]}}, "it")
    with pytest.raises(UserError, match=r"unknown key 'inner\.nmaes' in it"):
        layer_from_plain(Outer, {"inner": {"nmaes": [1]}}, "it")
    with pytest.raises(UserError, match="Got 3 for inner in it, expected keys with values"):
        layer_from_plain(Outer, {"inner": 3}, "it")


def test_a_missing_field_and_no_mapping_at_all_are_named():
    with pytest.raises(UserError, match="There is no 'model' in the record"):
        from_plain(Outer, {}, "the record")
    with pytest.raises(UserError, match="for the record, expected keys with values"):
        from_plain(Outer, None, "the record")


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 60 + "]" * 60, "more than 50 deep"),
        ("[" * 100_000, "more than 50 deep|is not YAML"),
        ("1" * 5000, "4300 digits"),
    ],
)
def test_bounds_of_what_is_read(read, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text, "it")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("read", "most"), [(read_json, MOST_TEXT), (read_yaml, MOST_YAML)])
def test_no_text_is_too_large_to_be_refused(read, most):
    with pytest.raises(UserError, match=f"expected at most {most:,}"):
        read(" " * (most + 1), "it")


@pytest.mark.parametrize("text", ["{", "\udcff", b"\xff\xfe", "nope"])
def test_no_json_is_one_sentence(text):
    with pytest.raises(UserError, match="Got no JSON in it"):
        read_json(text, "it")


@given(st.recursive(SCALARS, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=9))
def test_any_plain_data_is_fitted_or_refused(plain):
    with suppress(UserError):
        from_plain(Outer, {"model": plain, "inner": plain, "figures": plain, "more": plain}, "it")


@dataclass(frozen=True)
class Named:
    """Built by hand too: its values are checked either way."""

    names: Annotated[tuple[Annotated[str, Length(1, 5)], ...], Length(1, 2)]
    inner: Inner | None = None
    word: Literal["one", "other"] = "one"

    def __post_init__(self) -> None:
        check_values(self, "the sheet")


def test_a_dataclass_built_by_hand_is_checked_alike():
    assert Named(["a", "b"], Inner(names=("x",))).names == ("a", "b")
    assert from_plain(Named, {"names": ["a"], "inner": {}}, "it").inner == Inner()
    for wrong, says in (
        ({"names": []}, "Got 0 items for names in the sheet, expected 1 to 2"),
        ({"names": ["a"] * 10**6}, "Got 1,000,000 items for names"),
        ({"names": ["abcdef"]}, "Got 6 letters for names in the sheet, expected 1 to 5"),
        ({"names": 3}, "expected a list"),
        ({"names": ["a"], "word": "othr"}, "expected one of 'one', 'other'. Did you mean 'other'"),
    ):
        with pytest.raises(UserError, match=says):
            Named(**wrong)


def test_a_dataclass_comes_back_from_the_plain_data_that_it_was_written_as():
    @dataclass(frozen=True)
    class Part:
        size: tuple[int, int]
        name: str | None = None

    @dataclass(frozen=True)
    class Whole:
        parts: dict[str, Part]
        place: Path | None = None
        drawn: object = None

    whole = Whole({"a": Part((1, 2)), "b": Part((3, 4), "b")}, place=Path("x/y"))
    assert to_plain(whole, leave_out={"drawn"}, none=False) == {
        "parts": {"a": {"size": [1, 2]}, "b": {"size": [3, 4], "name": "b"}},
        "place": "x/y",
    }
    parts = to_plain(whole)["parts"]
    assert {name: from_plain(Part, part, "it") for name, part in parts.items()} == whole.parts
