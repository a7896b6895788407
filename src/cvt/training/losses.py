"""What an update minimises: of mixed labels, of a teacher's answers, or of both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from cvt.errors import UserError, first_line
from cvt.parts.model import num_params
from cvt.systems.catalog import ROWS
from cvt.systems.timm_networks import PREFIX
from cvt.training.config import DistillConfig, MixConfig
from cvt.weights.checkpoint import digest_of
from cvt.weights.record import Preprocessing
from cvt.weights.source import names_weights
from cvt.zoo.create import create_model, load
from cvt.zoo.timm_models import ENTRYPOINTS

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_loss(config: MixConfig, distill: DistillConfig | None = None) -> nn.Module:
    """Returns a function of logits (B, K) and labels (B,), or probabilities (B, K), to a number.

    It is a mean over images, so times B it is a sum over them. `ce` is cross-entropy. `bce` asks
    yes or no for each class and takes the mean over the K answers (timm's; arXiv 2110.00476).
    Label smoothing spreads its share evenly over all classes; a mixer does that itself, so its
    probabilities are taken as they are.

    With `distill` it is a `DistillationLoss` around that, which asks for the teacher's logits
    (B, K) as well.
    """
    smoothing = 0.0 if config.mixup or config.cutmix else config.smoothing
    base = nn.CrossEntropyLoss(label_smoothing=smoothing)
    if config.loss == "bce":
        base = _YesOrNo(smoothing=smoothing)
    return base if distill is None else DistillationLoss(base, distill)


class _YesOrNo(BinaryCrossEntropy):
    """In float32 whatever the network computes in: bf16 would round the targets."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return super().forward(x.float(), target)


def make_mixer(config: MixConfig, num_classes: int) -> Mixer | None:
    """Returns timm's mixup and cutmix as a function of a batch, or None where both are off.

    Each batch gets one of the two, with a strength of its own. timm pairs the images of a
    batch, so of an odd number (a broken image was skipped) the last one sits out.
    """
    if not (config.mixup or config.cutmix):
        return None
    mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(images) // 2 * 2
        return mixup(images[:even], labels[:even])

    return mix


# --- What a student minimises that learns from labels and from a teacher: DeiT's distillation.


class DistillationLoss(nn.Module):
    """Of logits, targets and the teacher's logits, all (B, K) or (B,), a number.

    `(1 - alpha) * base + alpha * term`: the base loss has its targets as they come, mixed and
    smoothed; `distillation_term` has the teacher's answers to the same augmented images. It is
    a mean over images, so times B it is a sum over them.

    A student with a distillation token returns two logits in training: labels teach the first,
    the teacher the second. Another student's only logits learn from both, which is the paper's
    distillation without a token (Table 3); the authors' code refuses that. `kind` none is the base
    loss of the first.

    Source: DeiT, arXiv 2012.12877, section 4; facebookresearch/deit 7e160fe, losses.py.
    Deviations: students without a token; both logits are brought to float32 at least.

    Args:
        base: A function of logits (B, K) and targets to the mean over images.
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
    led, taught = (
        each.to(torch.promote_types(each.dtype, torch.float32)) for each in (led, taught)
    )
    if kind == "hard":
        return F.cross_entropy(led, taught.argmax(dim=1))
    ours, theirs = (F.log_softmax(each / tau, dim=1) for each in (led, taught))
    return tau**2 * (theirs.exp() * (theirs - ours)).sum() / led.numel()


# --- The network that a student learns from: found, checked, frozen.


@dataclass(frozen=True, kw_only=True)
class FoundTeacher:
    """A trained network as it was found, on the CPU and in evaluation mode.

    Args:
        name: What it was asked for by.
        preprocessing: The mean and the deviation that its input is to have.
        class_names: What its outputs stand for, where it says so.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None

    def digest(self) -> str:
        """Returns a digest of all tensors, by name, and of the mean and the deviation."""
        told = repr((self.preprocessing.mean, self.preprocessing.std))
        return digest_of(self.network.state_dict(), told)


class Teacher:
    """Answers a student's augmented images (B, C, H, W) with logits (B, K), without a gradient.

    The images come with the student's mean and deviation and are brought to the teacher's own by
    one multiplication and one addition a channel. Their size stays: as in the authors' code,
    student and teacher see the same pixels.

    It is no module, so that nothing counts, moves, averages or trains it with the student.

    Args:
        student: How the student's images were prepared.
    """

    def __init__(self, source: FoundTeacher, student: Preprocessing, device: torch.device) -> None:
        self.name, self.digest = source.name, source.digest()
        self.network = source.network.eval().requires_grad_(False).to(device)
        self.num_params = num_params(self.network)
        self._affine = _affine(student, source.preprocessing, device)

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            if self._affine is not None:
                scale, shift = self._affine
                images = torch.addcmul(shift, images, scale)
            return self.network(images)


def find_teacher(name: str, changes: Mapping[str, Any]) -> FoundTeacher:
    """Finds a trained network.

    Args:
        name: A checkpoint or a run's folder; a model of this library that has published weights,
            with their tag or without; or else whatever `cvt.load` knows, `timm/NAME` among it.
        changes: Fields of its row; for `timm/NAME` what timm's network takes.
    """
    from timm.models import is_model_pretrained

    if "num_classes" in changes:
        raise UserError(
            "Got teacher_args num_classes, which would give the teacher an untrained classifier; "
            "leave it out."
        )
    is_row = name.partition(".")[0] in ENTRYPOINTS and not names_weights(name)
    try:
        model: Any = create_model(name, True, **changes) if is_row else load(name, **changes)
    except UserError as error:
        is_timms_already = name in ROWS and ROWS[name].made_by_timm
        is_there = is_model_pretrained(name) and not is_timms_already
        hint = f" Or take {PREFIX}{name}, which timm has." if is_there else ""
        raise UserError(f"Cannot get the teacher: {error}{hint}") from error
    record = model.record
    if record.multi_label:
        raise UserError(
            f"Got the teacher {name}, whose classes may hold together (multi_label), expected one "
            "that names a single class."
        )
    return FoundTeacher(
        name=name,
        network=model.eval(),
        preprocessing=record.preprocessing,
        class_names=record.class_names,
    )


def check_teacher(
    source: FoundTeacher, student: Preprocessing, class_names: tuple[str, ...]
) -> list[str]:
    """Makes sure that a teacher can teach these classes on the student's images.

    Returns sentences that the user should read: that its classes have other names, for one.
    """
    name, network = source.name, source.network
    count = getattr(network, "num_classes", None)
    if count != len(class_names):
        raise UserError(
            f"Got the teacher {name} with {count} classes for data with {len(class_names)}, "
            "expected as many; take one that was trained on these classes."
        )
    size = student.input_size
    said = f"{size[0]}x{size[1]}x{size[2]}"
    try:
        with torch.no_grad():
            answer = network(torch.zeros(1, *size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The teacher {name} does not take the student's images of {said} "
            f"({first_line(error)}); give another --image-size, change the teacher by "
            "--teacher-args, or take another one."
        ) from error
    if tuple(getattr(answer, "shape", ())) != (1, count):
        raise UserError(f"The teacher {name} does not answer an image with {count} logits.")
    theirs = source.class_names
    if theirs is None or theirs == class_names:
        return []
    index = next(
        i for i, pair in enumerate(zip(theirs, class_names, strict=True)) if len({*pair}) > 1
    )
    where = f"class {index} is {theirs[index]!r} to it and {class_names[index]!r} in the data"
    if sorted(theirs) == sorted(class_names):
        raise UserError(
            f"Got the teacher {name} with the data's classes in another order ({where}), "
            "expected the same order; take one that was trained on these data."
        )
    return [
        f"The teacher {name} calls its classes otherwise ({where}); they are taken to be "
        "the same ones in the same order."
    ]


def _affine(
    student: Preprocessing, teacher: Preprocessing, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (C, 1, 1) from the student's normalisation to the teacher's, if they differ.

    With x = (p - m) / s for a pixel p, (p - m') / s' is x * s / s' + (m - m') / s'.
    """
    if (student.mean, student.std) == (teacher.mean, teacher.std):
        return None
    m, s, m_, s_ = (
        torch.tensor(each, dtype=torch.float64)
        for each in (student.mean, student.std, teacher.mean, teacher.std)
    )
    scale, shift = s / s_, (m - m_) / s_
    return scale.float().to(device).view(-1, 1, 1), shift.float().to(device).view(-1, 1, 1)
