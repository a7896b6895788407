"""The versions that are allowed: each has an end, and the lowest are those that CI tests with."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [
    each
    for extra in PROJECT["optional-dependencies"].values()
    for each in extra
    if not each.startswith("cvt[")
]


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *EXTRAS])
def test_a_dependency_has_a_lowest_and_an_upper_bound(requirement):
    assert re.search(r"==|>=[\d.]+,<\d", requirement)


def test_ci_tests_with_the_lowest_versions():
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and line[0] != "#")
    tools = [each for each in EXTRAS if each.partition(">")[0] in pinned]
    assert {each.partition(">")[0] for each in tools} >= {"pytest", "hypothesis"}
    for requirement in [*PROJECT["dependencies"], *tools]:
        name, least = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        exact = pinned[name].split(".")
        assert exact[: len(least.split("."))] == least.split("."), requirement
    assert "-c .ci/lowest.txt" in (ROOT / ".ci" / "run").read_text()
    assert PROJECT["requires-python"].startswith(">=3.11")  # which .ci/run calls by name
