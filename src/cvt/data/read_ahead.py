"""Reading from a slow source while somebody else works."""

import atexit
from collections.abc import Generator
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE, _LONGEST_END = 0.1, 10.0  # seconds


def read_ahead(items: Generator[T], depth: int) -> Generator[T]:
    """Yields items that a thread has read meanwhile, at most `depth` of them before they are due.

    An error in reading comes out here, behind the items before it.
    """
    reader = _Reader(items, depth)
    reader.start()
    try:
        while True:
            found, error = reader.ready.get()
            if error is not None:
                raise error
            if not found:
                return
            yield found[0]
    finally:
        reader.enough.set()
        reader.join(_PATIENCE)
        if reader.is_alive():  # `datasets` takes five seconds to let its own threads go
            atexit.register(reader.join, _LONGEST_END)


class _Reader(Thread, Generic[T]):
    """Puts lists of one item each into `ready`, an empty one at the end, or an error."""

    def __init__(self, items: Generator[T], depth: int) -> None:
        super().__init__(name="read ahead", daemon=True)
        self.items = items
        self.ready: Queue[tuple[list[T], BaseException | None]] = Queue(depth)
        self.enough = Event()

    def run(self) -> None:
        try:
            for item in self.items:
                self._put([item])
                if self.enough.is_set():
                    break
            self._put([])
        except BaseException as error:  # it is raised again where it can be handled
            self._put([], error)
        finally:
            self.items.close()

    def _put(self, found: list[T], error: BaseException | None = None) -> None:
        while not self.enough.is_set():
            with suppress(Full):
                return self.ready.put((found, error), timeout=_PATIENCE)
