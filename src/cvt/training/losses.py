"""What a run minimises, from class numbers or from a mixer's probabilities."""

from typing import Literal

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from cvt.training.config import DistillConfig, MixConfig

# --- What a student minimises that learns from labels and from a teacher: DeiT's distillation.


class DistillationLoss(nn.Module):
    """Of logits, targets and the teacher's logits, all (B, K) or (B,), a number.

    `(1 - alpha) * base + alpha * term`: the base loss has its targets as they come, mixed and
    smoothed; `distillation_term` has the teacher's answers to the same augmented pictures. It is
    a mean over pictures, so times B it is a sum over them.

    A student with a distillation token returns two logits in training: labels teach the first,
    the teacher the second. Another student's only logits learn from both, which is the paper's
    distillation without a token (Table 3); the authors' code refuses that. `kind` none is the base
    loss of the first.

    Source: DeiT, arXiv 2012.12877, section 4; facebookresearch/deit 7e160fe, losses.py.
    Deviations: students without a token; both logits are brought to float32 at least.

    Args:
        base: A function of logits (B, K) and targets to the mean over pictures.
        config: Kind, alpha and tau, all of them filled in.
    """

    def __init__(self, base: nn.Module, config: DistillConfig) -> None:
        super().__init__()
        self.base = base
        self.kind: Literal["hard", "soft", "none"] = config.kind
        self.alpha, self.tau = config.alpha, config.tau

    def forward(
        self, out: Tensor | tuple[Tensor, Tensor], targets: Tensor, taught: Tensor
    ) -> Tensor:
        own, led = (out, out) if isinstance(out, Tensor) else out
        base = self.base(own, targets)
        if self.kind == "none":
            return base
        return (1 - self.alpha) * base + self.alpha * distillation_term(
            led, taught, self.kind, self.tau
        )


def distillation_term(
    led: Tensor, taught: Tensor, kind: Literal["hard", "soft"], tau: float
) -> Tensor:
    """How far a student's logits (B, K) are from a teacher's (B, K), a number.

    Hard is the cross-entropy with the class that the teacher finds most likely. Soft is `tau**2`
    times the Kullback-Leibler divergence of both softmaxes at temperature `tau`, summed up and
    divided by B * K. Dividing by K as well is what torch's `batchmean` does not do and its `mean`
    does; the published figures were had that way, and it makes the term K times smaller.
    """
    led, taught = _at_least_float32(led), _at_least_float32(taught)
    if kind == "hard":
        return F.cross_entropy(led, taught.argmax(dim=1))
    ours, theirs = (F.log_softmax(each / tau, dim=1) for each in (led, taught))
    return tau**2 * (theirs.exp() * (theirs - ours)).sum() / led.numel()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def make_loss(config: MixConfig, distill: DistillConfig | None = None) -> nn.Module:
    """Returns a function of logits (B, K) and labels (B,), or probabilities (B, K), to a number.

    It is a mean over pictures, so times B it is a sum over them. `ce` is cross-entropy. `bce` asks
    yes or no for each class and takes the mean over the K answers (timm's; arXiv 2110.00476).
    Label smoothing spreads its share evenly over all classes; a mixer does that itself, so its
    probabilities are taken as they are.

    With `distill` it is a `DistillationLoss` around that, which asks for the teacher's logits
    (B, K) as well.
    """
    base = _base(config)
    return base if distill is None else DistillationLoss(base, distill)


def _base(config: MixConfig) -> nn.Module:
    is_mixed = config.mixup or config.cutmix
    smoothing = 0.0 if is_mixed else config.smoothing
    if config.loss == "bce":
        return _YesOrNo(smoothing=smoothing)
    return nn.CrossEntropyLoss(label_smoothing=smoothing)


class _YesOrNo(BinaryCrossEntropy):
    """In float32 whatever the network computes in: bf16 would round the targets."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return super().forward(x.float(), target)
