"""The groups of a run's config: each is a nested mapping in YAML, and `--GROUP.FIELD` as flags."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimiser under a cosine with linear warm-up, stepped at every update."""

    opt: Literal["adamw", "sgd", "lamb"] | None = None
    """adamw, sgd (Nesterov) or lamb."""

    base_lr: float | None = None
    """Peak learning rate for a global batch of 512 images; it grows in proportion to the batch."""

    lr: float | None = None
    """Peak learning rate itself; by default base_lr * batch_size / 512."""

    min_lr: float | None = None
    """Learning rate that the cosine ends at; by default a hundredth of the peak."""

    weight_decay: float | None = None
    """Decay of matrices and kernels; biases, norms, class tokens and position tables have none."""

    warmup_epochs: float | None = None
    """Epochs over which the learning rate climbs from a thousandth of its peak."""

    momentum: float | None = None
    """Momentum of sgd; the others do not read it."""

    layer_decay: float | None = None
    """Factor by which each block's learning rate falls short of the next one's; 1 is none."""

    clip_grad: float | None = None
    """Largest norm that the gradient may keep; 0 leaves it alone."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures are varied, field for field `cvt.data.transforms.Augment`."""

    crop: Literal["random_resized", "pad", "none"] | None = None
    """Random part of the picture, whole picture shifted by an eighth, or what evaluation sees."""

    scale: tuple[float, float] | None = None
    """Smallest and largest share of the area that a random_resized crop takes."""

    ratio: tuple[float, float] | None = None
    """Smallest and largest width / height of that crop."""

    hflip: float | None = None
    """Probability of mirroring left and right."""

    color_jitter: float | None = None
    """Strength of random brightness, contrast and saturation, where auto_augment is off."""

    auto_augment: str | None = None
    """A policy of timm's, such as rand-m9-mstd0.5-inc1; off: none."""

    re_prob: float | None = None
    """Probability of erasing a random rectangle."""

    re_mode: Literal["const", "rand", "pixel"] | None = None
    """What is erased becomes 0 (const), one random colour (rand) or noise (pixel)."""

    repeats: int | None = None
    """Differently varied copies of a picture in a batch; an epoch then sees fewer pictures."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How pictures of a batch, and their labels, are mixed."""

    mixup: float | None = None
    """Alpha of mixup, which blends two pictures; 0 is off."""

    cutmix: float | None = None
    """Alpha of cutmix, which pastes a part of one picture into another; 0 is off."""

    smoothing: float | None = None
    """Probability that a label gives away to the other classes."""

    loss: Literal["ce", "bce"] | None = None
    """Cross-entropy over the classes (ce), or a yes or no for each of them (bce)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from `teacher`; nothing reads it where there is none."""

    kind: Literal["hard", "soft", "none"] | None = None
    """Learn the teacher's first choice (hard, the default), its probabilities (soft) or nothing."""

    alpha: float | None = None
    """Share of the loss that the teacher decides, by default 0.5; the labels decide the rest."""

    tau: float | None = None
    """Temperature by which soft divides both networks' logits, by default 1."""


GROUPS = ("optim", "augment", "mix", "distill")
