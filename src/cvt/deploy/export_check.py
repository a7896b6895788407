"""What a written file computes, held against the model that it comes from."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from cvt.data.digits import digit_splits
from cvt.data.image import BadImage, open_image
from cvt.data.inputs import find_images
from cvt.data.transforms import eval_transform
from cvt.deploy.export_sizes import Sizes
from cvt.deploy.precision import agreement
from cvt.deploy.target import dtype_of
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

_T = TypeVar("_T")

Run = Callable[[Tensor], Tensor]

# Of the logits' spread, by what the file computes in. A wrong activation or a wrong half pixel is
# over the first by a factor of ten; rounding is below each of them by as much.
LIMITS = {"float64": 1e-4, "float32": 1e-4, "float16": 5e-2, "bfloat16": 0.3, "int8": 1.0}
# Convolutions of a GPU keep ten bits of each factor (TF32) unless told otherwise.
_ON_GPU = 1e-2

_DIGITS, _PICTURES, _BATCH = 16, 64, 8


@dataclass(frozen=True)
class Check:
    """What came out for images of one kind and shape.

    Args:
        images: What they are: `random`, `digits`, or the folder that they are from.
        count: How many.
        size: Their (height, width).
        error: The largest difference of two outputs, in units of the outputs' own spread.
        top1: For how many of them both name the same class first, in percent; None without
            classes.
        mean_error: The mean of all differences, in the same units.
    """

    images: str
    count: int
    size: tuple[int, int]
    error: float
    top1: float | None
    mean_error: float


@dataclass(frozen=True)
class Pictures:
    """Real images.

    Args:
        kind: What they are.
        images: Each (C, H, W), prepared for the model.
        bad: One sentence for each that could not be read.
    """

    kind: str
    images: tuple[Tensor, ...]
    bad: tuple[str, ...] = ()


def check_outputs(
    model: nn.Module, run: Run, sizes: Sizes, pictures: Sequence[Pictures]
) -> list[Check]:
    """Compares what a file and the model return, on random images of several shapes and on real.

    Args:
        model: The training form.
        run: What runs the file.
        sizes: What the file takes.
        pictures: They go in as batches of the file's size.

    Raises:
        UserError: The model's own outputs are no numbers, or those of the file have another shape.
    """
    reference = _reference(model)
    has_classes = bool(getattr(model, "num_classes", 0))
    generator = torch.Generator().manual_seed(0)
    batches = [("random", [torch.randn(s, generator=generator)]) for s in sizes.examples()]
    batches += [(each.kind, _batches(each.images, sizes)) for each in pictures if each.images]
    return [_compare(reference, run, kind, each, has_classes) for kind, each in batches]


def _compare(
    reference: Run, run: Run, kind: str, batches: list[Tensor], has_classes: bool
) -> Check:
    found = agreement(reference, lambda images: _rows(run(images)), batches)
    # The mean passes on what is no number; a network of one output has no spread.
    error = found.relative_max if found.spread else found.max_error
    return Check(
        images=kind,
        count=found.num_images,
        size=(batches[0].shape[2], batches[0].shape[3]),
        error=error if math.isfinite(found.mean_error) else math.inf,
        top1=found.top1 if has_classes else None,
        mean_error=found.relative_mean if found.spread else found.mean_error,
    )


def _reference(model: nn.Module) -> Run:
    """The model in its own precision, or in float32 if that is a lower one."""
    network = copy.deepcopy(model).cpu().eval()
    network = network if _dtype(model) == torch.float64 else network.float()

    def run(images: Tensor) -> Tensor:
        output = _rows(network(images.to(_dtype(network))))
        if not output.isfinite().all():
            raise UserError(
                f"Got a model whose own outputs on {len(images)} images of {images.shape[2]}x"
                f"{images.shape[3]} pixels are not all finite; train it again, or load another."
            )
        return output

    return run


def limit_of(dtype: str, device: torch.device) -> float:
    """Returns the largest error that rounding can explain."""
    return max(LIMITS[dtype], _ON_GPU if device.type == "cuda" else 0.0)


def real_images(folder: str | None, preprocessing: Preprocessing) -> Pictures:
    """Returns up to 64 pictures, prepared for the model.

    A model that takes neither grey nor RGB pictures has none, unless they are asked for.

    Args:
        folder: A folder, a file or a pattern; None: scikit-learn's scans of digits, enlarged,
            which are real but no photographs.

    Raises:
        UserError: Not one of them can be read.
    """
    if folder is None and preprocessing.input_size[0] not in (1, 3):
        return Pictures("none", ())
    prepare = eval_transform(preprocessing)
    if folder is None:
        scans = digit_splits()["test"].some(_DIGITS)
        return Pictures("digits", tuple(prepare(_good(each)) for each in scans))
    prepared, bad = [], []
    for source in _spread(list(find_images([folder]))):
        try:
            prepared.append(prepare(open_image(_good(source))))
        except BadImage as error:
            bad.append(str(error))
    if not prepared:
        raise UserError(f"Got no image in {folder!r} that can be read, expected one at least.")
    return Pictures(folder, tuple(prepared), tuple(bad))


def _good(source: _T | BadImage) -> _T:
    if isinstance(source, BadImage):
        raise source
    return source


def _spread(found: list) -> Iterable:
    count = min(_PICTURES, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _batches(pictures: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """In a fixed batch the last ones are followed by the first again."""
    low, high = sizes.batch
    if low != high:
        return list(torch.stack(list(pictures)).split(_BATCH))
    count = -(-len(pictures) // low) * low
    return list(torch.stack([pictures[i % len(pictures)] for i in range(count)]).split(low))


def _rows(output: Tensor) -> Tensor:
    """Outputs (B, ...) as (B, numbers): tokens and features are compared like logits."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"Got a model that returns a {type(output).__name__}, expected one tensor; feature "
            "pyramids are not exported."
        )
    return output.flatten(1)


def _dtype(model: nn.Module) -> torch.dtype:
    return dtype_of(model) or torch.float32
