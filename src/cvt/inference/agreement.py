"""How far a network in low precision agrees with the one it comes from."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvt.errors import UserError

# One answer in a hundred: users of a smaller format are mostly told to expect no more to change.
ENOUGH = 99.0
_BATCH = 16

LOW = (
    "In int8 the network does not quite say what it says in float32: {}. Measure its accuracy "
    "before you use it, calibrate on more images like those it will see, or take bf16 or "
    "float32."
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two networks agree on the same images.

    Args:
        top1: For how many both name the same class first, in percent; logits with NaN name none.
        max_error: The largest difference of two logits; NaN if one of them is.
        mean_error: The mean of all absolute differences; NaN if a logit is.
        spread: The logits' own standard deviation about the mean of each image's, in the
            reference: what an error is to be compared with.
    """

    num_images: int
    top1: float
    max_error: float
    mean_error: float
    spread: float

    @property
    def relative_max(self) -> float:
        """The largest error in units of the spread."""
        return _ratio(self.max_error, self.spread)

    @property
    def relative_mean(self) -> float:
        """The mean error in units of the spread."""
        return _ratio(self.mean_error, self.spread)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        relative = {"relative_max": self.relative_max, "relative_mean": self.relative_mean}
        return {**asdict(self), **relative}

    def __str__(self) -> str:
        images = "1 image" if self.num_images == 1 else f"{self.num_images:,} images"
        return (
            f"the same class for {self.top1:.2f} % of {images}; logits differ by "
            f"{self.relative_mean:.2g} of their spread on average, by {self.relative_max:.2g} "
            "at most"
        )


def agreement(
    reference: nn.Module | Callable[[Tensor], Tensor],
    deployed: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor | Iterable[Tensor],
) -> Agreement:
    """Compares a network's logits with a reference's, both in eval mode, without gradients.

    Args:
        reference: Usually the model itself, in float32.
        deployed: Usually what `cvt.deploy` made of it.
        images: Real ones, prepared for the model: (N, C, H, W), or batches of any sizes.
    """
    batches = images.split(_BATCH) if isinstance(images, Tensor) else images
    count = same = numbers = 0
    total = squares = 0.0
    largest = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            expected = _answer(reference, batch)
            got = _answer(deployed, batch)
            if expected.ndim != 2 or got.shape != expected.shape:
                raise UserError(
                    f"Got outputs of shapes {tuple(expected.shape)} and {tuple(got.shape)}, "
                    "expected logits (batch, classes) from both."
                )
            if not len(batch):
                continue
            error = (got - expected).abs()
            count += len(batch)
            # With NaN among its logits an image has no class.
            has_nan = got.isnan().any(1) | expected.isnan().any(1)
            same += int(((got.argmax(1) == expected.argmax(1)) & ~has_nan).sum())
            # Of tensors, since Python's max passes over what is no number.
            largest = torch.maximum(largest, error.max())
            total += error.sum().item()
            squares += (expected - expected.mean(1, keepdim=True)).square().sum().item()
            numbers += error.numel()
    if not count:
        raise UserError("Got no images to compare two networks on, expected one at least.")
    return Agreement(
        num_images=count,
        top1=100 * same / count,
        max_error=largest.item(),
        mean_error=total / numbers,
        spread=(squares / numbers) ** 0.5,
    )


def checked_agreement(
    reference: nn.Module, deployed: nn.Module, images: Tensor
) -> Agreement | None:
    """Returns the agreement, with a warning if it is below 99 %; None for what has no logits."""
    with torch.no_grad():
        first = reference(images[:1])
    if not isinstance(first, Tensor) or first.ndim != 2:
        return None
    found = agreement(reference, deployed, images)
    if found.top1 < ENOUGH:
        warnings.warn(LOW.format(found), stacklevel=2)
    return found


def _answer(network: nn.Module | Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """In float64 on the CPU; a network in training mode is in eval mode meanwhile."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        output = network(batch)
    finally:
        for module, mode in modes:
            module.training = mode
    return output.detach().to("cpu", torch.float64)


def _ratio(error: float, spread: float) -> float:
    return error / spread if spread else float("inf") if error else 0.0
