"""Pictures that come one after the other, from a source that cannot go to the n-th."""

import atexit
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, NamedTuple, NoReturn, TypeVar

import numpy as np
from PIL import Image

from cvt.data.image import BadImage, open_image
from cvt.data.sets import MOST_BYTES, ImageSet
from cvt.errors import UserError


class Row(NamedTuple):
    """A picture before it is decoded; it travels to the process that does so.

    Args:
        number: Position in the epoch's order, plus the length of the set for every repetition.
        source: The bytes of a file, or where it lies: a path or an address; or why it has none.
        label: Position of its class, or -1 if it has none.
        name: What messages call it.
    """

    number: int
    source: bytes | str | BadImage
    label: int
    name: str


class StreamSet(ImageSet):
    """Pictures whose order and labels are not known before they come.

    The loaders take it like any other set. What asks for all labels or for a certain picture
    (cutting out a split, for one) gets a `UserError`.

    Args:
        open_rows: Begins at the start, in an order that is a function of the seed alone; None asks
            for the order of the source.
        count: Rows of the source; fewer are an error, more are not read.
        classes: Class names; a label is a position in them.
        source: What messages call the data.
    """

    def __init__(
        self,
        open_rows: Callable[[int | None], Iterator[Row]],
        count: int,
        classes: Sequence[str],
        source: str,
    ) -> None:
        self.open_rows = open_rows
        self.count = count
        self.classes = tuple(classes)
        self.source = source

    def __len__(self) -> int:
        return self.count

    def rows(self, seed: int | None = None) -> Iterator[Row]:
        """Yields all rows, `count` of them.

        Raises:
            UserError: The stream breaks off, or ends early.
        """
        seen, rows = 0, self.open_rows(seed)
        while seen < self.count:
            try:
                row = next(rows, None)
            except Exception as error:  # pyarrow, fsspec and those below raise nearly anything
                reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
                raise UserError(
                    f"The stream {self.source} broke off after {seen} of {self.count} images "
                    f"({reason}); check the connection and go on with --resume."
                ) from error
            if row is None:
                raise UserError(
                    f"The stream {self.source} ended after {seen} of the {self.count} images that "
                    "its description promises; correct that, or use hfds/ instead of hfids/."
                )
            yield row
            seen += 1

    def some(self, count: int) -> Iterator[Image.Image | BadImage]:
        """Yields the first pictures: going through all of them would take too long."""
        rows = self.rows()
        for _ in range(min(count, self.count)):
            yield decoded(next(rows))

    def fingerprint(self) -> str:
        """Returns what is known beforehand."""
        return f"{self.source} of {len(self.classes)} classes"

    def name(self, index: int) -> str:
        return f"{self.source} image {index}"

    def image(self, index: int) -> Image.Image:
        self._refuse()

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """Refuses, as it would have to go back and forth."""
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name == "labels":
            self._refuse()
        raise AttributeError(name)

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"{self.source} is a stream, which this cannot use: it asks for pictures in another "
            "order than they come in; load the data whole by writing hfds/ instead of hfids/."
        )


def decoded(row: Row) -> Image.Image | BadImage:
    """Opens a row's picture; what cannot be used is returned as a sentence."""
    if isinstance(row.source, BadImage):
        return row.source
    if row.label < 0:
        return BadImage(f"{row.name} has no class; leave it out.")
    try:
        if isinstance(row.source, str) and "://" in row.source:
            return open_image(_fetched(row.source, row.name), name=row.name)
        return open_image(row.source, name=row.name)
    except BadImage as error:
        return error


def _fetched(address: str, name: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except Exception as error:  # as above
        raise BadImage(f"Cannot read {name}: {error}.") from error
    if len(content) > MOST_BYTES:
        raise BadImage(f"{name} has more than {MOST_BYTES:,} bytes; leave it out.")
    return content


# --- Reading from a slow source while somebody else works.

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
