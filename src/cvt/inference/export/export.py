"""`cvt.export`: from a model to a file that other runtimes read, checked against the model."""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt.data.sources import digit_splits
from cvt.errors import UserError, did_you_mean
from cvt.files import atomic_files, expanded
from cvt.inference.agreement import ENOUGH, LOW, agreement
from cvt.inference.export.formats import ExportFormat, Run, choose_format
from cvt.inference.export.snippet import snippet
from cvt.inference.export.trace import Metadata, Sizes, choose_sizes
from cvt.inference.int8 import (
    Calibrating,
    calibration_images,
    check_calibration,
    prepared,
    some_images,
)
from cvt.inference.rewrite import dtype_of
from cvt.parts.model import VisionModel
from cvt.plain import to_plain
from cvt.runtime import choose_device, number_format
from cvt.systems.catalog import ROWS
from cvt.weights.timm_folder import record_of_model
from cvt.zoo.create import create_model, load


@dataclass(frozen=True)
class Check:
    """What came out for images of one kind and (height, width).

    Args:
        images: What they are: `random`, `digits`, `calibration`, or the folder they are from.
        error: The largest difference of two outputs, in units of the outputs' own spread.
        top1: For how many both name the same class first, in percent; None without classes.
        mean_error: The mean of all differences, in the units of `error`.
    """

    images: str
    count: int
    size: tuple[int, int]
    error: float
    top1: float | None
    mean_error: float


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Args:
        path: The file; OpenVINO's weights lie beside it, in `.bin`.
        num_bytes: Of all that was written.
        metadata: What the file says about itself.
        limit: The error above which a check would have failed.
        bad_images: One sentence for each image that could not be read.
        caution: A sentence where int8 keeps fewer than 99 % of the answers on real images.
        snippet: A program that uses the file, without this library.
    """

    path: Path
    format: str
    num_bytes: int
    metadata: Metadata
    checks: tuple[Check, ...]
    limit: float
    bad_images: tuple[str, ...]
    caution: str | None
    snippet: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, of the metadata what images the file takes."""
        return {
            "path": str(self.path),
            "format": self.format,
            "num_bytes": self.num_bytes,
            "input": self.metadata.about_input,
            "limit": self.limit,
            "checks": to_plain(self.checks),
            "snippet": self.snippet,
        }


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    *,
    format: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    dynamic: Sequence[str] | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
    images: str | Path | None = None,
    calibration: Calibrating | None = None,
    untrained: bool = False,
) -> Exported:
    """Writes a network, rewritten for inference, for another runtime.

    The file is run before it gets its name: on random images, of the smallest size among others,
    and on real ones; it replaces a file that was there only when its outputs are the model's.
    Images go in and outputs come out in float32.

    Args:
        model: A network of this library's, or anything that `cvt.load` takes.
        path: Where to; `.pt2` is a torch.export program, `.xml` OpenVINO, `.aot.pt2` AOTInductor.
        format: `program`, `onnx`, `openvino` or `aot`, where the path does not say it.
        image_size: Side, or (height, width), in pixels; by default that of the preprocessing.
        batch_size: How many images each call takes; None: any number of them.
        dynamic: Free sizes, of `batch`, `height`, `width`; by default the batch if not given.
        dtype: What it computes in: float32 or fp16; for torch's formats also float64 and bf16. In
            OpenVINO fp16 is the weights' alone; int8, that of linear maps, is OpenVINO's alone.
        device: Where a torch.export program or a package will run.
        images: A folder of images to check with; by default scans of digits, enlarged, or the
            images of calibration.
        calibration: For int8, which needs it: real images, as for `cvt.deploy`.
        untrained: The model is named as by `cvt.list_models`, and gets fresh weights, for speed.
    """
    path = expanded(path)
    chosen = choose_format(path, format)
    dtype = number_format(dtype)
    where = _check_request(chosen, path, dtype, str(device))
    check_calibration(dtype, calibration, is_needed=True)
    network = model if isinstance(model, nn.Module) else _named(str(model), untrained)
    free = dynamic if dynamic is not None else ("batch",) if batch_size is None else ()
    about = _describe(network, image_size, batch_size, free, dtype)
    preprocessing = about.record.preprocessing
    ranges, bad = None, []
    real: list[RealImages] = []
    if calibration is not None:
        ranges = calibration_images(network, calibration, preprocessing)
        real.append(("calibration", list(ranges)))
    if images is not None:
        found, bad = prepared(some_images(str(images), _MOST_IMAGES), preprocessing, str(images))
        real.append((str(images), found))
    elif ranges is None and preprocessing.input_size[0] in (1, 3):  # else digits are nothing to it
        found, _ = prepared(digit_splits()["test"].some(_DIGITS), preprocessing, "digits")
        real.append(("digits", found))

    # Written under a name that nobody sees, checked, and only then given its own.
    limit = max(LIMITS[dtype], _ON_GPU if where.type == "cuda" else 0.0)
    companions = chosen.companions(path)
    with atomic_files(path, *companions) as temporary:
        program = chosen.trace(network, about, where)
        chosen.write(program, temporary, about, ranges)
        del program
        run = chosen.load(temporary, where)
        checks = _check_outputs(network, run, about.sizes, real)
        _refuse_difference(checks, limit, path)
    caution = None if ranges is None else _caution(checks)
    if caution is not None:
        warnings.warn(caution, stacklevel=2)
    files = (path, *(path.with_name(name) for name in companions))
    return Exported(
        path=path,
        format=chosen.name,
        num_bytes=sum(each.stat().st_size for each in files),
        metadata=about,
        checks=tuple(checks),
        limit=limit,
        bad_images=tuple(bad),
        caution=caution,
        snippet=snippet(chosen.name, path, about, str(where)),
    )


def _check_request(chosen: ExportFormat, path: Path, dtype: str, device: str) -> torch.device:
    if dtype not in chosen.dtypes:
        hint = " Int8 is for OpenVINO's files, .xml." if dtype == "int8" else ""
        raise UserError(
            f"Got dtype {dtype!r} for {chosen.title}, expected {' or '.join(chosen.dtypes)}."
            f"{hint or did_you_mean(dtype, chosen.dtypes)}"
        )
    where = choose_device(device)
    if where.type != "cpu" and not chosen.has_device:
        raise UserError(
            f"Got device {device!r} for {chosen.title}, whose files run wherever they are opened; "
            "leave the device out."
        )
    if path.is_dir():
        raise UserError(f"Got the folder {path}, expected the name of a file to write.")
    for other in (path.with_name(name) for name in chosen.companions(path)):
        if other.exists() and not path.exists():
            raise UserError(
                f"Got {path} to write, with {other.name} beside it, which is there and no part of "
                "such a file; take another name."
            )
    chosen.check_machine(dtype, where)
    return where


def _named(model: str, untrained: bool) -> nn.Module:
    if untrained:
        return create_model(model)
    if model in ROWS and not Path(model).exists():
        raise UserError(
            f"Got {model!r}, which names no weights; name a run folder, a checkpoint or published "
            "weights of `cvt models`, or add --untrained to export fresh ones, to measure speed."
        )
    return load(model)


def _describe(
    model: nn.Module,
    image_size: int | tuple[int, int] | None,
    batch_size: int | None,
    dynamic: Sequence[str],
    dtype: str,
) -> Metadata:
    """The model's record, with the size exported as that of its preprocessing, and the sizes."""
    if not hasattr(model, "spec"):
        raise UserError(
            f"Got a {type(model).__name__}, expected a cvt model, such as cvt.create_model or "
            "cvt.load return."
        )
    record = record_of_model(cast("VisionModel", model))
    if image_size is not None:
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        channels = record.preprocessing.input_size[0]
        prepared = replace(record.preprocessing, input_size=cast("Any", (channels, *sides)))
        record = replace(record, preprocessing=prepared)
    sizes = choose_sizes(record.spec, record.preprocessing.size, batch_size, dynamic)
    return Metadata(record, sizes, dtype)


def _refuse_difference(checks: Sequence[Check], limit: float, path: Path) -> None:
    worst = max(checks, key=lambda check: check.error)
    if worst.error > limit:
        height, width = worst.size
        raise UserError(
            f"Wrote no {path}: on {worst.count} {worst.images} images of {height}x{width} pixels "
            f"its outputs are off by {worst.error:.2g} of their spread, expected at most "
            f"{limit:.2g}; take another format or dtype, and tell us about this one."
        )


def _caution(checks: Sequence[Check]) -> str | None:
    for each in checks:
        if each.images != "random" and each.top1 is not None and each.top1 < ENOUGH:
            said = f"the same class for {each.top1:.2f} % of {each.count:,} images ({each.images})"
            return LOW.format(said)
    return None


# --- What a written file computes, held against the model that it comes from.

# Of the logits' spread, by what the file computes in. A wrong activation or a wrong half pixel is
# over the first by a factor of ten; rounding is below each of them by as much.
LIMITS = {"float64": 1e-4, "float32": 1e-4, "fp16": 5e-2, "bf16": 0.3, "int8": 1.0}
# Convolutions of a GPU keep ten bits of each factor (TF32) unless told otherwise.
_ON_GPU = 1e-2

_BATCH, _DIGITS, _MOST_IMAGES = 8, 16, 64
RealImages = tuple[str, list[Tensor]]
"""What they are, and each (C, H, W), prepared for the model; they go in as batches."""


def _check_outputs(
    model: nn.Module, run: Run, sizes: Sizes, real: Sequence[RealImages]
) -> list[Check]:
    """Compares what a file and the model return, on random images of several shapes and on real."""
    reference = _reference(model)
    has_classes = bool(getattr(model, "num_classes", 0))
    generator = torch.Generator().manual_seed(0)
    batches = [("random", [torch.randn(s, generator=generator)]) for s in sizes.examples()]
    batches += [(kind, _batches(images, sizes)) for kind, images in real]
    checks = []
    for kind, each in batches:
        found = agreement(reference, lambda images: _rows(run(images)), each)
        # The mean passes on what is no number; a network of one output has no spread.
        error = found.relative_max if found.spread else found.max_error
        check = Check(
            images=kind,
            count=found.num_images,
            size=(each[0].shape[2], each[0].shape[3]),
            error=error if math.isfinite(found.mean_error) else math.inf,
            top1=found.top1 if has_classes else None,
            mean_error=found.relative_mean if found.spread else found.mean_error,
        )
        checks.append(check)
    return checks


def _reference(model: nn.Module) -> Run:
    """The model in its own precision, or in float32 if that is a lower one."""
    network = copy.deepcopy(model).cpu().eval()
    dtype = torch.float64 if dtype_of(model) == torch.float64 else torch.float32
    network = network.to(dtype)

    def run(images: Tensor) -> Tensor:
        output = _rows(network(images.to(dtype)))
        if not output.isfinite().all():
            raise UserError(
                f"Got a model whose own outputs on {len(images)} images of {images.shape[2]}x"
                f"{images.shape[3]} pixels are not all finite; train it again, or load another."
            )
        return output

    return run


def _rows(output: Tensor) -> Tensor:
    """Outputs (B, ...) as (B, numbers): tokens and features are compared like logits."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"Got a model that returns a {type(output).__name__}, expected one tensor; feature "
            "pyramids are not exported."
        )
    return output.flatten(1)


def _batches(images: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """In a fixed batch the last ones are followed by the first again."""
    low, high = sizes.batch
    if low != high:
        return list(torch.stack(list(images)).split(_BATCH))
    count = -(-len(images) // low) * low
    return list(torch.stack([images[i % len(images)] for i in range(count)]).split(low))
