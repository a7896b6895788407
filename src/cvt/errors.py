"""The one exception for a user's mistake, and the nearest-name hint that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the caller can put right; the message says got, expected, do this.

    The command line prints it as one sentence and exits with code 2.
    """


def did_you_mean(got: str, options: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the option nearest to `got`, or an empty string."""
    near = get_close_matches(got, list(options), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
