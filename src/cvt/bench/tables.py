"""Figures as text, and what two of them have in common."""

from cvt.tables import Table

Block = Table  # until comparisons and the paper's tables say Table themselves


def say_number(value: float | None, digits: int | None = None) -> str:
    """Returns a figure with its digits after the point, or as it was written; `-` for none."""
    if value is None:
        return "-"
    return str(value) if digits is None else f"{value:.{digits}f}"


def say_gmacs(macs: int) -> str:
    """Returns multiply-accumulates in units of 10**9, three digits of them at least."""
    gmacs = macs / 1e9
    return f"{gmacs:.3f}" if gmacs >= 0.1 else f"{gmacs:.5f}"


def is_rounding(published: float, computed: float) -> bool:
    """Whether a published figure is the computed one at the digits that it was written with.

    Args:
        published: As printed: 22 has no digit after the point, 22.0 and 4.6 have one.
        computed: In the same unit.
    """
    _, _, decimals = str(published).partition(".")
    return abs(published - computed) <= 0.5 * 10.0 ** -len(decimals) * (1 + 1e-9)
