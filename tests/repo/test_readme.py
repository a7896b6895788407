"""What the README promises, executed."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from cvt import describe
from cvt.cli.main import make_app
from cvt.systems.cvt import PAPER_ROWS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line.partition(" #")[0].strip()
    for language, code in BLOCKS
    if language == "sh"
    for line in code.splitlines()
    if line.startswith("cvt ")
]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.slow] if "int8" in code else [])
        for number, code in enumerate(PYTHON)
    ],
)
def test_python_runs(number, tmp_path, monkeypatch, checkpoint, capsys):
    """In a folder that holds the run and the photographs that the text speaks of."""
    run = tmp_path / "runs" / "digits-cvt_nano_32-1"
    run.mkdir(parents=True)
    (run / "best.safetensors").write_bytes(checkpoint.read_bytes())
    Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photos" / "shades.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[number], f"README block {number}", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_these_flags(command):
    app = make_app()
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_table_of_models_is_counted():
    for name in PAPER_ROWS:
        small, large = describe(name), describe(name, 384)
        row = (
            f"| `{name}` | {small.num_params:,} | {small.macs / 1e9:.3f} | {large.macs / 1e9:.3f} |"
        )
        assert row in README


def test_tree_names_every_room():
    tree = next(code for language, code in BLOCKS if not language and code.startswith("src/cvt"))
    for entry in (ROOT / "src" / "cvt").iterdir():
        if not entry.name.startswith("__") and (entry.is_dir() or entry.suffix == ".py"):
            assert entry.stem in tree, entry.name


def test_dependencies_are_in_the_table():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert re.split(r"[<>=]", requirement)[0] in README


def test_ci_runs_the_readme_s_own_test_command():
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
    command = README.split("<!-- tests -->")[1].split("```")[1]
    assert "pytest" in command
    assert "pip install" in command


def test_ci_names_tests_that_exist():
    named = re.findall(r"tests/[\w/.]+", (ROOT / ".ci" / "run").read_text())
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
