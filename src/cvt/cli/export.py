"""`cvt export MODEL PATH`."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from cvt.cli.flags import Checkpoint, Json
from cvt.cli.output import print_json, print_skipped, print_table, say, say_lines, warn
from cvt.errors import UserError
from cvt.tables import Table

if TYPE_CHECKING:
    from cvt.inference.export import Exported


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """What is exported, and for where."""

    format: Literal["program", "onnx", "openvino", "aot"] | None = None
    """By default what PATH's name says."""
    image_size: str | None = None
    """A side, or HxW as in 224x160; by default the model's own."""
    batch_size: int | None = None
    """How many images each call takes; any number if left out."""
    dynamic: str | None = None
    """Sizes that are free: batch, or batch,height,width; none: not one."""
    dtype: str = "float32"
    """float32 or fp16; for torch's formats also float64 and bf16, for OpenVINO int8."""
    device: str = "cpu"
    """Where a file of torch's two formats will run."""
    images: str | None = None
    """Folder of images to check with; by default scans of digits, enlarged."""
    calibration: str | None = None
    """For int8: a folder or parquet file of images like those it will see; 300 do."""
    untrained: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """MODEL is one of `cvt models`, with fresh weights, for speed."""


def export(
    model: Checkpoint,
    path: Annotated[str, Parameter(help="File to write.")],
    /,
    *,
    flags: Annotated[ExportFlags, Parameter(name="*")] = ExportFlags(),
    json: Json = False,
) -> int:
    """Write a network for ONNX, OpenVINO and other runtimes.

    PATH ends in .pt2 for a torch.export program, .onnx, .xml for OpenVINO (which writes a .bin
    beside it), or .aot.pt2 for an AOTInductor package. Its outputs are compared with the model's;
    where they differ nothing is written. Ends with a program that uses the file without cvt.
    """
    import cvt
    from cvt.cli.show import parse_size

    said: dict[str, Any] = {**vars(flags)}
    said["image_size"] = parse_size(flags.image_size) if flags.image_size else None
    said["dynamic"] = None if flags.dynamic is None else _axes(flags.dynamic)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In int8 the network")  # said below
        result = cvt.export(model, path, **said)
    print_skipped(result.bad_images, sum(each.count for each in result.checks[-1:]))
    if json:
        print_json(result)
    else:
        _print(result)
    if result.caution:
        warn(result.caution)
    return int(bool(result.bad_images))


def _axes(text: str) -> tuple[str, ...]:
    if text.strip() == "none":
        return ()
    axes = tuple(part.strip() for part in text.split(",") if part.strip())
    if not axes:
        raise UserError(f"Got --dynamic {text!r}, expected batch, batch,height,width or none.")
    return axes


def _print(result: "Exported") -> None:
    from cvt.inference.export import FORMATS

    about = result.metadata
    kind = f"{FORMATS[result.format].title}, {about.dtype}, {result.num_bytes / 1e6:.1f} MB"
    say(f"Wrote {result.path}: {kind}, for images {about.sizes.sentence()}.")
    say()
    say("Its outputs beside the model's:")
    columns = {
        "Images": "images",
        "Count": "count",
        "Size": lambda check: f"{check.size[0]}x{check.size[1]}",
        "Largest error / spread": "error:.1e",
        "Mean": "mean_error:.1e",
        "Same top-1 %": "top1:.4g",
    }
    print_table(Table.of(result.checks, columns))
    say_lines(f"\nTo use it, without cvt:\n\n{result.snippet}")
