"""Expected output: files beside the tests, compared with what there is now, or written anew."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cvt.cli import main

HERE = Path(__file__).parent
_LARGEST = 50_000
_ACCEPT = "ACCEPT=1 python -m pytest tests/expected"


@pytest.fixture
def run(capfd, monkeypatch):
    """`run("show", "cvt_13")`: exit code, standard output and standard error, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="session")
def expect():
    """`expect("help/train.txt", text)`: fails, with the difference, unless that file holds it."""

    def check(name: str, text: str) -> None:
        path = HERE / name
        assert len(text.encode()) <= _LARGEST, f"{name} is too long to be read by anybody"
        if os.environ.get("ACCEPT"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), "expected", "now", lineterm="", n=2
            )
            pytest.fail(
                f"{name}: what users have has changed.\n" + "\n".join(lines) + "\n\nIf that is "
                f"asked for, accept it and look at the diff: {_ACCEPT}",
                pytrace=False,
            )

    return check


@pytest.fixture(scope="session")
def without_places(tmp_path_factory):
    """`without_places(text)`: the tests' own folders in it are `<tmp>`."""
    folders = re.compile(re.escape(str(tmp_path_factory.getbasetemp())) + r"/[^/\s'\"]+")
    return lambda text: folders.sub("<tmp>", text)


@pytest.fixture(scope="session")
def machine_lines(without_places):
    """`machine_lines(text, "seconds")`: JSON lines, a key a line, but for what is measured.

    Of the keys that are named, the types of numbers and words stay, and of lists the first item;
    where "float" is named, that is so of every float.
    """

    def pretty(text: str, *measured: str) -> str:
        for machine in re.findall(r'"hardware": ("[^"]+")', text):
            text = text.replace(machine[1:-1], "<machine>")
        objects = [json.loads(line) for line in text.splitlines()]
        assert objects
        made = "\n".join(
            json.dumps(_shown(each, frozenset(measured)), indent=1) for each in objects
        )
        made = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", made)
        return without_places(made) + "\n"

    return pretty


def _shown(value: Any, measured: frozenset[str], name: str = "", is_measured: bool = False) -> Any:
    is_measured = is_measured or name in measured
    if isinstance(value, dict):
        return {key: _shown(each, measured, key, is_measured) for key, each in value.items()}
    if isinstance(value, list):
        kept = value[:1] if is_measured else value
        return [_shown(each, measured, "", is_measured) for each in kept]
    if isinstance(value, float):
        # Of sums that come to nothing, computers disagree on the last bit.
        rounded = float(f"{value:.9g}") if abs(value) > 1e-12 else 0.0
        return "<float>" if is_measured or "float" in measured else rounded
    return value if value is None or not is_measured else f"<{type(value).__name__}>"
