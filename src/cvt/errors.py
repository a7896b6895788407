"""The one exception for a user's mistake, and the one place that makes text safe to show."""

import unicodedata
import warnings
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

MOST_SHOWN = 1000
"""Characters of a sentence that are shown; of a longer one the middle is left out."""

# Marks and overrides of writing direction: they let a name show as another one.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSAFE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, line and paragraph ends


class UserError(ValueError):
    """Something the caller can put right; the message says got, expected, do this.

    The command line prints it as one sentence and exits with code 2. Functions of this library
    raise it for all that a caller may get wrong; docstrings name it only where that says more.

    Args:
        sentence: What is said. It may quote files, names and values of strangers as they are: what
            could act on a terminal is shown escaped, and what is longer than `MOST_SHOWN` is cut.
        details: Lines below the sentence, such as a list of differences; each is treated alike.
    """

    is_told_elsewhere = False
    """Whether another of the processes that train together prints the same sentence."""

    def __init__(self, sentence: object = "", *, details: Iterable[str] = ()) -> None:
        super().__init__("\n".join([shown(sentence), *map(shown, details)]))


class Remark(UserWarning):
    """What a user should know although it stops nothing; the command line prints its sentence."""


_remarked: set[str] = set()


def remark(sentence: str) -> None:
    """Warns by a `Remark`, of the same thing once in a process."""
    if sentence not in _remarked:
        _remarked.add(sentence)
        warnings.warn(shown(sentence), Remark, stacklevel=3)


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """Returns text of unknown origin as it may be shown on one line of a terminal, log or page.

    Control characters, line ends, marks of writing direction and bytes of file names that are no
    text come out as Python's escapes for them (`\\x1b`, `\\n`, `\\xff`); letters of any script, and
    emoji, stay.

    Args:
        most: Characters to keep; the middle of longer text is replaced by its length.
    """
    text = str(text)
    if len(text) > most:
        kept = most // 2
        text = f"{text[:kept]}... ({len(text):,} characters) ...{text[-kept:]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(each) if is_unsafe(each) else each for each in text)


def is_unsafe(character: str) -> bool:
    """Whether a character does something to a terminal, or to the text around it."""
    return unicodedata.category(character) in _UNSAFE_CATEGORIES or character in _DIRECTIONS


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python spells a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1].encode("ascii", "backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """Returns what another library's error says, for a sentence of ours; its name if nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def did_you_mean(got: str, options: Iterable[str], cutoff: float = 0.5) -> str:
    """Returns `" Did you mean 'x'?"` for the option nearest to `got`, or an empty string.

    Args:
        cutoff: How alike they must be at least, from 0 to 1 for the same.
    """
    if len(got) > MOST_SHOWN:
        return ""
    near = get_close_matches(got, list(options), n=3, cutoff=cutoff)
    if not near:
        return ""
    best = SequenceMatcher(None, near[0], got).ratio()
    ties = [name for name in near if SequenceMatcher(None, name, got).ratio() == best]
    nearest = max(ties, key=lambda name: _shared_start(name, got))
    return f" Did you mean {nearest!r}?"


def unknown(what: str, got: object, options: Iterable[str]) -> UserError:
    """Returns what to say to a name that is none of some: which ones there are, and the nearest."""
    known = list(options)
    nearest = did_you_mean(str(got), known)
    return UserError(f"Got {what} {got!r}, expected one of {', '.join(known)}.{nearest}")


def _shared_start(one: str, other: str) -> int:
    """How many letters two words have in common before they part."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
