"""Labels of any origin: a class of the data, or a sentence why not."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt.data.labels import (
    MOST_CLASSES,
    BadLabel,
    Classes,
    as_label,
    classes_of,
    declared_classes,
    numbered,
)
from cvt.errors import UserError

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 12),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["0", "1", "02134", "10115", " cat ", "cat", "Cat", "café", "cafe\u0301", "²"]),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=300)
@given(VALUES)
def test_any_value_is_a_label_or_not(value):
    label = as_label(value)
    if isinstance(label, BadLabel):
        assert label.why
    elif isinstance(value, str):
        assert label == unicodedata.normalize("NFC", value.strip())
    else:
        assert label == value
        assert 0 <= value < MOST_CLASSES
        assert not isinstance(value, bool)


@settings(max_examples=300)
@given(st.lists(VALUES, min_size=1))
def test_labels_without_names_are_called_by_themselves(values):
    """Whatever else is among them, and whatever they look like."""
    labels = [as_label(value) for value in values]
    classes = classes_of(labels, "data")
    numbers, bad = numbered(labels, classes)
    assert len(set(classes.names)) == len(classes.names)
    for row, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        if isinstance(label, BadLabel):
            assert number == -1
            assert bad[row] == label
        else:
            assert classes.names[number] == str(label)
            assert row not in bad


@settings(max_examples=200)
@given(st.data())
def test_names_decide_where_they_are_there(data):
    """Two lists of the same names in any order: a number means what its own list says."""
    names = data.draw(st.lists(st.text("abcé", min_size=1, max_size=3), min_size=1, unique=True))
    names = list(dict.fromkeys(unicodedata.normalize("NFC", name) for name in names))
    own = data.draw(st.permutations(names))
    labels = data.draw(st.lists(st.integers(0, len(names) + 2), min_size=1))
    numbers, bad = numbered(labels, Classes(tuple(names)), own)
    for row, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        if label < len(own):
            assert names[number] == own[label]
        else:
            assert (number, row in bad) == (-1, True)


@pytest.mark.parametrize("name", [None, 3, "", " ", "n" * 1001, "\ud800", True, ["a"]])
def test_a_class_name_that_is_none(name):
    with pytest.raises(UserError, match="Class 1 in the file"):
        declared_classes(["cat", name], "the file")
