"""Streams whose output is lost, for tests of what then happens."""

import os
from typing import IO


def lost_stream(kind: str) -> IO[str]:
    """A stream to write to: `full` as on a full disk, `closed` as a pipe whose reader has gone."""
    if kind == "full":
        return open("/dev/full", "w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")
