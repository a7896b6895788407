"""Files of strangers: good ones made here, what is done to them, and what must not come of it."""

import json
import resource
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cvt.errors import UserError, is_unsafe

T = TypeVar("T")

SECONDS = 20  # for one input, on a busy machine
MOST_SENTENCE = 3000  # characters
MOST_MEMORY = 3 << 30  # bytes, over what a target held before

# Events of Python's audit hooks that reading a file has no business to cause.
_FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
    *("subprocess.Popen", "pty.spawn", "os.remove", "os.rename", "os.rmdir", "os.chmod"),
    *("shutil.rmtree", "socket.connect", "socket.bind", "ctypes.dlopen"),
}
_caught: list[str] | None = None


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if _caught is None:
        return
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in _FORBIDDEN or writes:
        _caught.append(f"{event} {args!r:.200}")


sys.addaudithook(_listen)


def examples(count: int) -> settings:
    """How a target is tried: this many inputs, about a minute's worth; those that fail shrink."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def refused_or(read: Callable[[], T]) -> T | UserError:
    """Reads a stranger's file: what comes of it is a value or one sentence, within bounds.

    Raises:
        AssertionError: The sentence is endless or could act on a terminal; reading ran a program,
            or wrote, removed or sent something; it took longer than `SECONDS`, or much memory.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _watched() as caught:
        try:
            result: T | UserError = read()
        except UserError as error:
            result = error
    assert not caught, caught
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_MEMORY, f"{grown >> 20} MiB"
    if isinstance(result, UserError):
        check_sentence(str(result))
    return result


def check_sentence(text: str) -> None:
    """A sentence of any error: no end of it, and nothing that acts on a terminal."""
    assert 0 < len(text) < MOST_SENTENCE, len(text)
    assert not any(is_unsafe(each) for each in text.replace("\n", "")), ascii(text)


@contextmanager
def _watched() -> Generator[list[str]]:
    global _caught
    caught: list[str] = []

    def too_long(*_: Any) -> None:
        raise AssertionError(f"still at it after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    _caught = caught
    try:
        yield caught
    finally:
        _caught = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40]


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A file with some of its bytes changed, taken out, put in, doubled, or cut off."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        what = draw(st.sampled_from(("set", "number", "out", "in", "again", "cut")))
        if what == "set":
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == "number":
            order = draw(st.sampled_from(("little", "big")))
            content[place : place + 8] = draw(st.sampled_from(_NUMBERS)).to_bytes(8, order)
        elif what == "out":
            del content[place : place + draw(st.integers(1, 64))]
        elif what == "in":
            content[place:place] = draw(st.binary(min_size=1, max_size=32))
        elif what == "again":
            content[place:place] = content[place : place + draw(st.integers(1, 512))]
        else:
            del content[place:]
    return bytes(content)


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3.5, float("nan"), float("inf"), 1 << 40, -(1 << 70), 10**4000),
    *("", "x", "x" * 100_000, "\x1b[2J\n\u202e", "../../../etc/passwd", "/etc/passwd", "os.system"),
    *("1e9", "nan", "\ud800", [], {}, [[]], [None], [1, "a"], {"": None}, [{}] * 50, ["x"] * 5000),
    json.loads("[" * 40 + "]" * 40),
]


@st.composite
def odd(draw: st.DrawFn, good: Any) -> Any:
    """Plain data with a value or two of another kind, missing, or under another name."""
    plain = {"root": deepcopy(good)}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(plain))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(("odd", "odd", "odd", "out", "more")))
        if what == "out" and holder is not plain:
            del holder[key]
        elif what == "more" and isinstance(holder, dict) and holder is not plain:
            name = draw(st.sampled_from(("", "x" * 300, "\x1b[31m", "__class__", "kind")))
            holder[name] = deepcopy(draw(st.sampled_from(ODD)))
        else:
            holder[key] = deepcopy(draw(st.sampled_from(ODD)))
    return plain["root"]


def _places(plain: Any) -> Generator[tuple[Any, Any]]:
    keys = list(plain) if isinstance(plain, dict) else range(min(len(plain), 20))
    for key in keys:
        yield plain, key
        if isinstance(plain[key], dict | list):
            yield from _places(plain[key])


def as_json(plain: Any) -> bytes:
    """As a stranger's program writes it: lone surrogates and endless numbers included."""
    sys_limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(plain).encode("ascii")
    finally:
        sys.set_int_max_str_digits(sys_limit)
