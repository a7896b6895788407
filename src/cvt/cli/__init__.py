"""The command line: one thin file a verb, each imported only when it is called."""

from cvt.cli.main import main

__all__ = ["main"]
