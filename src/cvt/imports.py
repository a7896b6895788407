"""Imports that wait: for the first use of a name, or for another package to be imported.

The hook is ours because wrapt, whose `register_post_import_hook` does the same, takes 60 ms to
import, a quarter of what `cvt --help` may take.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader


Door = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def lazy_door(room: str, homes: Mapping[str, str], chapters: str = "") -> Door:
    """Returns `__getattr__`, `__dir__` and `__all__` for a room whose names import on first use.

    Args:
        room: The room's `__name__`.
        homes: Its modules, each with the names that the room has of it, separated by spaces.
        chapters: Modules that are attributes of the room themselves.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name in chapters.split():
            return import_module(f"{room}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(f"{room}.{home_of[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[room]), *home_of}), sorted(home_of)


def after_import(name: str, action: Callable[[], Any]) -> None:
    """Calls `action` once the top-level package `name` is imported; at once if it already is.

    An import that fails calls nothing, and the next one is watched again.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(name, action))


class _Watch:
    """Finds nothing itself: puts a loader around that of the one package it waits for."""

    def __init__(self, name: str, action: Callable[[], Any]) -> None:
        self.name = name
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Announcing(spec.loader, self))
        return spec


class _Announcing:
    """The package's own loader, which afterwards says that it is done."""

    def __init__(self, loader: "Loader", watch: _Watch) -> None:
        self.loader = loader
        self.watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # resources and sources are asked of the loader

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        sys.meta_path.remove(self.watch)
        self.watch.action()
