"""Our Triton kernels, imported afresh for what is to run them: the interpreter or a GPU."""

import importlib
import sys
from types import ModuleType

import pytest

NAME = "cvt.inference.kernels.norm_projections_triton"

# So small that few tokens already take several strips, blocks of columns and blocks of channels.
SMALL_TILES = {"BLOCK_X": 2, "BLOCK_C": 16, "MAX_STEPS": 2}


def require_triton() -> None:
    """Skips where Triton is not installed: it comes with torch on Linux alone."""
    pytest.importorskip("triton", reason="Triton is not installed (with torch it is, on Linux)")


def load_kernels(monkeypatch: pytest.MonkeyPatch, interpret: str) -> ModuleType:
    """Imports the kernels until the end of the test.

    Triton decides what runs a function when the function is defined, so the whole process need not
    be interpreted, and tests that compile may come before and after in the same one.

    Args:
        monkeypatch: Undoes it all.
        interpret: "1" for the interpreter, "0" for a GPU.
    """
    require_triton()
    # Where Triton's own functions are defined: compiled ones, unless the user set the variable.
    from triton import language as tl
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    # Triton 3.9 warns where nobody chose.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    if interpret == "1":
        monkeypatch.setattr(tl, "sum", InterpretedFunction(tl.sum.fn))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return importlib.import_module(NAME)


def load_interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports the kernels for the interpreter, with small tiles."""
    module = load_kernels(monkeypatch, "1")
    for name, value in SMALL_TILES.items():
        monkeypatch.setattr(module, name, value)
    return module
