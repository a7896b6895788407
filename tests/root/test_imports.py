import importlib
import sys

import pytest

from cvt.imports import after_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(code)`: the name of a fresh package with that code, not yet imported."""

    def make(code="x = 1", name="freshly_made"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").write_text(code)
        (tmp_path / name / "inner.py").write_text("y = 2")
        importlib.invalidate_caches()
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield make
    for name in [name for name in sys.modules if name.startswith("freshly_made")]:
        del sys.modules[name]


def test_waits_for_the_import_and_happens_once_when_the_package_is_whole(package):
    name, seen, finders = package(), [], list(sys.meta_path)
    after_import(name, lambda: seen.append(sys.modules[name].x))
    assert seen == []
    module = importlib.import_module(f"{name}.inner")
    assert (seen, module.y) == ([1], 2)
    importlib.import_module(name)
    assert seen == [1]
    assert sys.meta_path == finders
    package_ = sys.modules[name]
    assert package_.__loader__ is package_.__spec__.loader
    assert type(package_.__loader__).__module__ == "_frozen_importlib_external"


def test_happens_at_once_for_what_is_there():
    seen = []
    after_import("sys", lambda: seen.append(1))
    assert seen == [1]


def test_a_package_that_fails_is_watched_again(package):
    name, seen = package("raise RuntimeError('not today')"), []
    after_import(name, lambda: seen.append(1))
    with pytest.raises(RuntimeError, match="not today"):
        importlib.import_module(name)
    assert seen == []
    package("x = 'now it is fine'")
    importlib.import_module(name)
    assert seen == [1]


def test_a_package_that_does_not_exist_stays_missing(package):
    after_import("freshly_missing", lambda: pytest.fail("there is no such package"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("freshly_missing")


def test_two_may_wait_for_the_same(package):
    name, seen = package(), []
    after_import(name, lambda: seen.append("first"))
    after_import(name, lambda: seen.append("second"))
    importlib.import_module(name)
    assert sorted(seen) == ["first", "second"]


def test_other_finders_are_not_disturbed(package, monkeypatch):
    name = package()
    after_import(name, lambda: None)
    before = list(sys.meta_path)
    assert importlib.util.find_spec("json").name == "json"
    assert sys.meta_path == before
