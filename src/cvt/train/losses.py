"""What a run minimises, from class numbers or from a mixer's probabilities."""

from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from cvt.train.config import DistillConfig, MixConfig, known
from cvt.train.distill import DistillationLoss


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
    smoothing = 0.0 if is_mixed else known(config.smoothing)
    if known(config.loss) == "bce":
        return _YesOrNo(smoothing=smoothing)
    return nn.CrossEntropyLoss(label_smoothing=smoothing)


class _YesOrNo(BinaryCrossEntropy):
    """In float32 whatever the network computes in: bf16 would round the targets."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return super().forward(x.float(), target)
