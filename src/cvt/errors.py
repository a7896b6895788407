"""The one exception for a user's mistake, and the nearest-name hint that goes with it."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


class UserError(ValueError):
    """Something the caller can put right; the message says got, expected, do this.

    The command line prints it as one sentence and exits with code 2.
    """

    is_told_elsewhere = False
    """Whether another of the processes that train together prints the same sentence."""


def did_you_mean(got: str, options: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the option nearest to `got`, or an empty string."""
    near = get_close_matches(got, list(options), n=3, cutoff=0.5)
    if not near:
        return ""
    best = SequenceMatcher(None, near[0], got).ratio()
    ties = [name for name in near if SequenceMatcher(None, name, got).ratio() == best]
    nearest = max(ties, key=lambda name: _shared_start(name, got))
    return f" Did you mean {nearest!r}?"


def _shared_start(one: str, other: str) -> int:
    """How many letters two words have in common before they part."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
