"""One update: mix, forward, backward, check, clip, step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from timm.data import Mixup
from torch import Tensor, nn
from torch.optim import Optimizer

from cvt.errors import UserError
from cvt.train.config import MixConfig, known
from cvt.train.device import autocast

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class NonFinite(UserError):
    """A loss or gradient that is not a number, or infinite; the weights were not touched."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an update was like: mean loss of its pictures, and gradient norm before clipping."""

    loss: float
    grad_norm: float


def train_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss_fn: nn.Module,
    optimizer: Optimizer,
    *,
    mixer: Mixer | None = None,
    clip_grad: float = 0.0,
    precision: str = "float32",
) -> StepResult:
    """Makes one update from images (B, C, H, W) and labels (B,) on the model's device.

    Args:
        mixer: Blends the pictures and turns labels into probabilities (B, classes).
        clip_grad: Largest norm that the gradient may keep; 0 leaves it alone.
        precision: `float32` or `bf16`.

    Raises:
        NonFinite: The loss or the gradient is not finite. No weight was changed.
    """
    if mixer is not None:
        images, labels = mixer(images, labels)
    optimizer.zero_grad(set_to_none=True)
    with autocast(images.device, precision):
        loss = loss_fn(model(images), labels)
    loss.backward()
    limit = clip_grad or math.inf
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    result = StepResult(loss=loss.item(), grad_norm=norm.item())
    if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
        raise NonFinite(f"the loss is {result.loss:.4g}, the gradient norm {result.grad_norm:.4g}")
    optimizer.step()
    return result


def make_mixer(config: MixConfig, num_classes: int) -> Mixer | None:
    """Returns timm's mixup and cutmix as a function of a batch, or None where both are off.

    Each batch gets one of the two, with a strength of its own. timm pairs the pictures of a
    batch, so of an odd number (a broken picture was skipped) the last one sits out.
    """
    if not (config.mixup or config.cutmix):
        return None
    mixup = Mixup(
        mixup_alpha=known(config.mixup),
        cutmix_alpha=known(config.cutmix),
        label_smoothing=known(config.smoothing),
        num_classes=num_classes,
    )

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(images) // 2 * 2
        return mixup(images[:even], labels[:even])

    return mix


def make_loss(config: MixConfig) -> nn.Module:
    """Returns cross-entropy, which takes class numbers as well as a mixer's probabilities.

    A mixer smooths the labels itself.
    """
    is_mixed = config.mixup or config.cutmix
    return nn.CrossEntropyLoss(label_smoothing=0.0 if is_mixed else known(config.smoothing))
