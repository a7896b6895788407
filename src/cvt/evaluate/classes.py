"""Which output of a model stands for which class of some data."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cvt.data import ImageSet
from cvt.data.folder import class_positions
from cvt.data.image_set import check_labels
from cvt.data.stream_set import StreamSet
from cvt.errors import UserError
from cvt.evaluate.imagenet import imagenet_outputs
from cvt.evaluate.timm_lists import imagenet_synsets

_SHOWN = 3


def matched_labels(
    data: ImageSet, model: Sequence[str] | None, num_outputs: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Returns the output for each class of the data, int64, (N,), and what to tell of it.

    Classes are matched by name, whatever their order, case and Unicode form. Two lists of
    ImageNet's classes, as words or WordNet numbers, are matched by knowing ImageNet. Data whose
    classes are called 0, 1, 2 ... is matched by these numbers if no model's class is called so, or
    the model has no names; there, words stand for the outputs in their order. Classes of which the
    data has no picture, and classes of the model that are not in the data, do no harm.

    Raises:
        UserError: A class of the data is none of the model's, or a label is out of range.
    """
    occurring = _occurring(data)
    found, told = _positions(data.classes, model, num_outputs)
    missing = [each for each in occurring if found[each] is None]
    if missing:
        raise _unknown(data, missing, model, num_outputs)
    return torch.tensor([-1 if each is None else each for each in found]), told


def _occurring(data: ImageSet) -> list[int]:
    """Returns the classes that the data has pictures of, as far as that is known beforehand."""
    if isinstance(data, StreamSet):
        return list(range(len(data.classes)))
    check_labels(data)
    return [int(label) for label in np.unique(data.labels) if label >= 0]


def _positions(
    names: Sequence[str], model: Sequence[str] | None, num_outputs: int
) -> tuple[list[int | None], tuple[str, ...]]:
    found = class_positions(names, model or ())
    if any(each is not None for each in found):
        return found, ()
    if (known := _of_imagenet(names, model, num_outputs)) is not None:
        return known, ()
    if all(name.isascii() and name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
        told = "The numbers that the classes of the data are called by are taken for the outputs'."
        return [each if each < num_outputs else None for each in numbers], (told,)
    if model is None and len(names) == num_outputs:
        told = "The model does not name its classes: they are taken in the order of the data's."
        return list(range(num_outputs)), (told,)
    return found, ()


def _of_imagenet(
    names: Sequence[str], model: Sequence[str] | None, num_outputs: int
) -> list[int | None] | None:
    """Returns the outputs for classes of ImageNet in a model of ImageNet, or None."""
    synsets = imagenet_synsets()
    numbers = class_positions(names, synsets)
    try:
        if None in numbers:  # no WordNet numbers: perhaps the words for all thousand
            numbers = list(imagenet_outputs(names, len(names)).argsort().tolist())
        outputs = imagenet_outputs(model, num_outputs).tolist()
    except UserError:
        return None
    return [None if number is None else outputs[number] for number in numbers]


def _unknown(
    data: ImageSet, missing: Sequence[int], model: Sequence[str] | None, num_outputs: int
) -> UserError:
    images = int(np.isin(data.labels, missing).sum())
    some = ", ".join(repr(data.classes[each]) for each in missing[:_SHOWN])
    more = " ..." if len(missing) > _SHOWN else ""
    has = f"has {', '.join(map(repr, (model or ())[:_SHOWN]))} ..." if model else "names none"
    return UserError(
        f"Got data with {len(missing)} of {len(data.classes)} classes that the model does not "
        f"have: {some}{more} ({images:,} images); the model of {num_outputs} outputs {has}; "
        "rename the classes as in training, or leave them out."
    )
