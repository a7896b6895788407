"""The rules of the house, measured: budgets, import directions, names, lint and types."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cvt

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cvt"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(file.relative_to(SOURCE)) for file in FILES]

# From the ground up; a room may import those before it and itself.
ROOMS = [
    "after_import",
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
    "training",
    "inference",
    "bench",
    "cli",
]
# Evaluation reads what a run says about its data: to be cut.
UPWARD = {("evaluation", "training")}


def tree(name: str) -> ast.Module:
    return ast.parse((SOURCE / name).read_text())


def functions(module: ast.AST):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(module) if isinstance(node, kinds)]


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name):
    room = Path(name).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for node in ast.walk(tree(name)):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            modules = [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.startswith("cvt."):
                other = module.split(".")[1]
                if (room, other) in UPWARD:
                    continue
                assert ROOMS.index(other) <= ROOMS.index(room), f"{room} imports {other}"


def test_no_room_is_for_odds_and_ends():
    banned = {"utils", "util", "helpers", "common", "misc"}
    assert not banned & {part for file in FILES for part in file.with_suffix("").parts}


@pytest.mark.parametrize("name", NAMES)
def test_public_things_have_docstrings_and_types(name):
    module = tree(name)
    assert ast.get_docstring(module), "a file says what it is"
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
            for function in functions(node):
                if function.name.startswith("_") and function.name != "__init__":
                    continue
                assert function.returns is not None, function.name


def test_front_door_opens_and_stays_small():
    assert len(cvt.__all__) <= 20
    for name in cvt.__all__:
        assert getattr(cvt, name).__module__.startswith("cvt.")
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        cvt.creat_model  # noqa: B018


def test_front_door_and_rooms_do_not_share_a_name():
    """`cvt.train` could not be both a function and a package: the last import would win."""
    rooms = {file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in FILES}
    assert not rooms & set(cvt.__all__)


@pytest.mark.parametrize("module", ["cvt", "cvt.training.config", "cvt.cli.main", "cvt.parts.spec"])
def test_light_modules_stay_light(module):
    code = (
        f"import sys, {module}\nprint([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def assert_passes(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_is_content():
    for command in (["check"], ["format", "--check"]):
        assert_passes("ruff", *command, "src", "tests", "docs")


def test_types_are_right():
    assert_passes("ty", "check", "--python", sys.prefix, "src")


def test_every_module_imports_by_itself():
    """In any order: none of them may depend on another having been imported before."""
    for name in ("cvt.weights.record", "cvt.prediction"):
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
    assert importlib.import_module("cvt.zoo.timm_models").ENTRYPOINTS
