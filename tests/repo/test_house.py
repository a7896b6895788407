"""The rules of the house: import directions, sizes of rooms, names, docstrings."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import cvt

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cvt"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_FILES = 15

# From the ground up; a room may import those before it and itself.
ROOMS = [
    "imports",
    "errors",
    "files",
    "plain",
    "tables",
    "figures",
    "runtime",
    "parts",
    "systems",
    "weights",
    "zoo",
    "data",
    "evaluation",
    "prediction",
    "explanation",
    "inference",
    "training",
    "bench",
    "cli",
]
# To be cut: two rooms are still too full.
TOO_FULL = {"training", "data"}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def functions(module: ast.AST):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(module) if isinstance(node, kinds)]


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def imported(file: Path) -> set[str]:
    """Every name of the package that a file imports, anywhere in it, with its module's."""
    names = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("cvt.")} - {"cvt.__version__"}


def test_imports_point_down():
    upward = []
    for file in FILES:
        room = room_of(file)
        if room in ("__init__", "__main__"):
            continue
        for name in imported(file):
            other = name.split(".")[1]
            if ROOMS.index(other) > ROOMS.index(room):
                upward.append(f"{file.relative_to(SOURCE)} imports {name}")
    assert not upward


def test_files_import_each_other_in_no_circle():
    files = {".".join(("cvt", *f.relative_to(SOURCE).with_suffix("").parts)): f for f in FILES}
    below = {name: imported(file) & files.keys() for name, file in files.items()}
    del below["cvt.__init__"]
    while ends := below.keys() - (set().union(*below.values()) & {n for n in below if below[n]}):
        below = {name: others - ends for name, others in below.items() if name not in ends}
    assert not below


def test_no_room_has_too_many_files():
    rooms = {file.parent for file in FILES}
    full = {str(room.relative_to(SOURCE)): len(list(room.glob("*.py"))) for room in rooms}
    assert not {room for room, count in full.items() if count > MOST_FILES} - TOO_FULL


def test_no_room_is_for_odds_and_ends():
    banned = {"utils", "util", "helpers", "common", "misc"}
    assert not banned & {part for file in FILES for part in file.with_suffix("").parts}


def test_kinds_of_model_are_told_apart_by_what_their_spec_says():
    asked = [
        f"{file.relative_to(SOURCE)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("isinstance", "type")
        and re.search(r"\b(?:Backbone|TNT|Baseline)Spec\b", ast.unparse(node))
    ]
    assert not asked


def test_no_two_classes_share_a_name():
    count = Counter(
        node.name
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef)
    )
    assert not {name for name in count if count[name] > 1}


def test_public_things_have_docstrings_and_types():
    lacking = []
    for file in FILES:
        module = tree(file)
        if not ast.get_docstring(module):
            lacking.append(f"{file}: no docstring")
        for node in module.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                lacking.append(f"{file}: {node.name} has no docstring")
            for function in functions(node):
                is_public = not function.name.startswith("_") or function.name == "__init__"
                if is_public and function.returns is None:
                    lacking.append(f"{file}: {function.name} does not say what it returns")
    assert not lacking


def test_front_door_opens_and_stays_small():
    assert len(cvt.__all__) <= 26
    for name in cvt.__all__:
        assert getattr(cvt, name).__module__.startswith("cvt.")
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        cvt.creat_model  # noqa: B018


def test_front_door_and_rooms_do_not_share_a_name():
    """`cvt.train` could not be both a function and a package: the last import would win."""
    assert not {room_of(file) for file in FILES} & set(cvt.__all__)


@pytest.mark.parametrize("module", ["cvt", "cvt.training.config", "cvt.cli.main", "cvt.parts.spec"])
def test_light_modules_stay_light(module):
    code = (
        f"import sys, {module}\nprint([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
