"""Writing a network as a file for other runtimes, which need nothing of this library."""

from cvt.inference.export.export import Check, Exported, export
from cvt.inference.export.formats import FORMATS, ExportFormat, choose_format, read_metadata
from cvt.inference.export.snippet import snippet
from cvt.inference.export.trace import AXES, Metadata, Sizes, choose_sizes, trace

__all__ = [
    "AXES",
    "FORMATS",
    "Check",
    "ExportFormat",
    "Exported",
    "Metadata",
    "Sizes",
    "choose_format",
    "choose_sizes",
    "export",
    "read_metadata",
    "snippet",
    "trace",
]
