"""The network that a student learns from: found, checked, frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvt.errors import UserError, did_you_mean, first_line
from cvt.parts.model import num_params
from cvt.systems.catalog import ROWS
from cvt.weights.checkpoint import digest_of
from cvt.weights.record import Preprocessing
from cvt.weights.source import names_weights
from cvt.zoo.create import build_trained, create_model, load
from cvt.zoo.timm_models import ENTRYPOINTS

_TIMM = "timm/"


@dataclass(frozen=True, kw_only=True)
class Source:
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
    """Answers a student's augmented pictures (B, C, H, W) with logits (B, K), without a gradient.

    The pictures come with the student's mean and deviation and are brought to the teacher's own by
    one multiplication and one addition a channel. Their size stays: as in the authors' code,
    student and teacher see the same pixels.

    It is no module, so that nothing counts, moves, averages or trains it with the student.

    Args:
        source: The network.
        student: How the student's pictures were prepared.
        device: Where it works from now on.
    """

    def __init__(self, source: Source, student: Preprocessing, device: torch.device) -> None:
        self.name, self.digest, self.class_names = source.name, source.digest(), source.class_names
        self.network = source.network.eval().requires_grad_(False).to(device)
        self._affine = _affine(student, source.preprocessing, device)

    @property
    def num_params(self) -> int:
        """Parameters of the network, as papers count them."""
        return num_params(self.network)

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            if self._affine is not None:
                scale, shift = self._affine
                images = torch.addcmul(shift, images, scale)
            return self.network(images)


def find_teacher(name: str, changes: Mapping[str, Any]) -> Source:
    """Finds a trained network.

    Args:
        name: A checkpoint or a run's folder; a model of this library that has published weights,
            with their tag or without; `timm/NAME` for one that timm downloads; or else whatever
            `cvt.load` knows.
        changes: Fields of its row; for `timm/NAME` what timm's builder takes.

    Raises:
        UserError: There is no such network, it has no trained weights, or they cannot be had.
    """
    if "num_classes" in changes:
        raise UserError(
            "Got teacher_args num_classes, which would give the teacher an untrained classifier; "
            "leave it out."
        )
    if name.startswith(_TIMM) and not Path(name).exists():
        return _from_timm(name, changes)
    model = _from_here(name, changes)
    record = model.record
    if record.multi_label:
        raise UserError(
            f"Got the teacher {name}, whose classes may hold together (multi_label), expected one "
            "that names a single class."
        )
    return Source(
        name=name,
        network=model,
        preprocessing=record.preprocessing,
        class_names=record.class_names,
    )


def _from_here(name: str, changes: Mapping[str, Any]) -> Any:
    from timm.models import is_model_pretrained

    is_row = name.partition(".")[0] in ENTRYPOINTS and not names_weights(name)
    try:
        return (create_model(name, True, **changes) if is_row else load(name, **changes)).eval()
    except UserError as error:
        is_timms_already = name in ROWS and ROWS[name].made_by_timm
        is_there = is_model_pretrained(name) and not is_timms_already
        hint = f" Or take {_TIMM}{name}, which timm has." if is_there else ""
        raise UserError(f"Cannot get the teacher: {error}{hint}") from error


def check_teacher(
    source: Source, student: Preprocessing, class_names: tuple[str, ...]
) -> list[str]:
    """Makes sure that a teacher can teach these classes on the student's pictures.

    Returns:
        Sentences that the user should read: that its classes have other names, for one.

    Raises:
        UserError: It has more or fewer classes, or the same in another order, or its network does
            not take pictures of this size or number of channels.
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
    return _compare_names(source, class_names)


def _compare_names(source: Source, class_names: tuple[str, ...]) -> list[str]:
    theirs = source.class_names
    if theirs is None or theirs == class_names:
        return []
    index = next(
        i for i, pair in enumerate(zip(theirs, class_names, strict=True)) if len({*pair}) > 1
    )
    where = f"class {index} is {theirs[index]!r} to it and {class_names[index]!r} in the data"
    if sorted(theirs) == sorted(class_names):
        raise UserError(
            f"Got the teacher {source.name} with the data's classes in another order ({where}), "
            "expected the same order; take one that was trained on these data."
        )
    return [
        f"The teacher {source.name} calls its classes otherwise ({where}); they are taken to be "
        "the same ones in the same order."
    ]


def _from_timm(name: str, changes: Mapping[str, Any]) -> Source:
    import timm
    from timm.data import resolve_model_data_config

    model_name = name.removeprefix(_TIMM)
    if not timm.models.is_model_pretrained(model_name):
        hint = did_you_mean(model_name, timm.list_models(pretrained=True))
        raise UserError(f"timm has no trained weights of {model_name!r}.{hint}")
    network = build_trained(model_name, partial(timm.create_model, model_name), changes)
    config = resolve_model_data_config(network)
    channels = getattr(network, "in_chans", None) or changes.get("in_chans", 3)
    preprocessing = Preprocessing(
        input_size=config["input_size"], mean=config["mean"], std=config["std"]
    )
    return Source(
        name=name, network=network.eval(), preprocessing=preprocessing.with_channels(channels)
    )


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
