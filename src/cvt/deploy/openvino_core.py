"""OpenVINO's core: one for the process, which is never let go."""

from functools import cache
from typing import Any


@cache
def core() -> Any:
    """Returns the process's `openvino.Core`, made at the first call.

    A core on the CPU puts a signal stack of its own in the place of the thread's (where there is
    one: Python's faulthandler has one, and so pytest), and its end puts back what it found. Of two
    cores that do not end in the reverse order of their beginnings, the second puts back the first
    one's, which is gone: the next signal, be it Ctrl-C, then ends the process. Seen with 2026.4.
    """
    import openvino

    return openvino.Core()
