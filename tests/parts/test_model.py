"""What we import from timm's private modules: one function, behaving as the networks rely on."""

import ast
from pathlib import Path

import pytest
from timm.models._features import feature_take_indices

import cvt


def test_one_private_name_of_timm_is_imported_in_one_place():
    source = Path(cvt.__file__).parent
    found = [
        (str(file.relative_to(source)), node.module, alias.name)
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "timm"
        for alias in node.names
        if "._" in f"{node.module}.{alias.name}"
    ]
    assert found == [("parts/model.py", "timm.models._features", "feature_take_indices")]


@pytest.mark.parametrize(
    ("indices", "taken", "last"),
    [
        (None, [0, 1, 2], 2),
        (1, [2], 2),
        (2, [1, 2], 2),
        ([0], [0], 0),
        ((0, 2), [0, 2], 2),
        ([-1], [2], 2),
        ([-3, 1], [0, 1], 1),
    ],
)
def test_levels_are_made_absolute(indices, taken, last):
    assert feature_take_indices(3, indices) == (taken, last)


@pytest.mark.parametrize("indices", [0, 4, [3], [-4]])
def test_levels_that_are_not_there_are_refused(indices):
    with pytest.raises(AssertionError, match="out of range"):
        feature_take_indices(3, indices)
