"""Times and sizes as people say them."""

import math


def say_time(seconds: float) -> str:
    """Returns a duration in its two largest units: `45 s`, `3 min 5 s`, `2 h 14 min`, `3 d 2 h`.

    What is not known, nan, is `-`.
    """
    if math.isnan(seconds):
        return "-"
    total = max(round(seconds), 0)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    minutes = round(total / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(total / 3600)
    return f"{hours // 24} d {hours % 24} h"


def say_memory(megabytes: float) -> str:
    """Returns a size, given in MB of 2**20 bytes, in those or in GB of 2**30."""
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def say_count(number: int) -> str:
    """Returns a number of parameters: `950`, `12.3 k`, `3.8 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
