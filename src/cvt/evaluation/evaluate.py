"""What a model is worth on some data: its classes matched by name, its answers summed up."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvt.data import ImageSet, Selection, select
from cvt.data.labels import class_positions
from cvt.data.sets import check_labels
from cvt.errors import UserError, did_you_mean
from cvt.evaluation.answers import (
    Batching,
    class_names_of,
    opened_model,
    run_data,
)
from cvt.evaluation.imagenet import (
    BENCHMARKS,
    CorruptionScores,
    RealScore,
    imagenet_outputs,
    imagenet_synsets,
    measure_benchmark,
)
from cvt.evaluation.scores import Evaluation, summarise
from cvt.parts.model import VisionModel

_SHOWN = 3


def evaluate(
    model: str | Path | VisionModel,
    data: str | Path | ImageSet = "digits",
    *,
    benchmark: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_start: Callable[[int], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation | RealScore | CorruptionScores:
    """Measures a model on labelled images, prepared as its checkpoint says.

    Data that comes without splits is measured whole; but if it is what the model's run learned
    from, only the validation images that the run held out are. Classes are matched by name; some
    of the model's may be missing. Started by torchrun, every process has to call this; they share
    the images, each of which counts once, and all return the same.

    Args:
        model: A checkpoint, a run's folder (its best weights), a published name, or a model.
        data: As for training, or a set of images; with `benchmark`, a folder.
        benchmark: One of ImageNet's sets, measured by its own protocol: a key of
            `cvt.evaluation.BENCHMARKS`.
        split: `train`, `val`, `test` or `all`; by default test if the data has it, or else val,
            or else all.
        data_dir: Where `torch/` sets lie, `hfds/` sets are cached, and relative paths begin.
        download: Fetch a `torch/` set that is not there yet.
        batch_size: Images per forward pass, in each process.
        num_workers: Processes that prepare images, beside each measuring one; 0: none.
        precision: `float32`, `bf16`, `fp16`, or `auto`: bf16 on GPUs that compute in it.
        on_start: Called with the number of images that this process is about to go through.
        on_batch: Called after each batch with its number of images.

    Returns:
        A `RealScore` for the benchmark `real`, `CorruptionScores` for `c`, else an `Evaluation`. A
        single image that cannot be read is skipped and named in it.
    """
    batching = Batching(batch_size, num_workers, device, precision, on_start, on_batch)
    if benchmark is not None:
        if benchmark not in BENCHMARKS:
            raise UserError(
                f"Unknown benchmark {benchmark!r}, expected one of {', '.join(BENCHMARKS)}."
                f"{did_you_mean(benchmark, BENCHMARKS)}"
            )
        if split or data_dir or download or not isinstance(data, str | Path):
            raise UserError(
                "Got a benchmark with split, data_dir or download, which it does not read; name "
                "the benchmark's folder alone."
            )
        with opened_model(model, batching) as tested:
            return measure_benchmark(tested, data, benchmark)
    with opened_model(model, batching) as tested:
        network = tested.network
        if isinstance(data, str | Path):
            name, run = str(data), run_data(model, network)
            chosen = tested.world.in_turn(
                lambda: select(name, split, data_dir=data_dir, download=download, run=run)
            )
        else:
            chosen = Selection(images=data, split="all", num_found=len(data), notes=data.notes)
        names = class_names_of(network)
        labels_of, told = matched_labels(chosen.images, names, network.num_classes)
        said = tested.answers(chosen.images)
    result = summarise(replace(said, labels=labels_of[said.labels]), names or chosen.images.classes)
    return replace(
        result,
        split=chosen.split,
        num_found=chosen.num_found,
        split_was_cut=chosen.was_cut,
        notes=(*chosen.notes, *told),
        bad=(*chosen.unreadable, *result.bad),
    )


# --- Which output of a model stands for which class of some data.


def matched_labels(
    data: ImageSet, model: Sequence[str] | None, num_outputs: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Returns the output for each class of the data, int64, (N,), and what to tell of it.

    Classes are matched by name, whatever their order, case and Unicode form. Two lists of
    ImageNet's classes, as words or WordNet numbers, are matched by knowing ImageNet. Data whose
    classes are called 0, 1, 2 ... is matched by these numbers if no model's class is called so, or
    the model has no names; there, words stand for the outputs in their order. Classes of which the
    data has no image, and classes of the model that are not in the data, do no harm; one that the
    model does not have is an error.
    """
    check_labels(data)
    found, told = _positions(data.classes, model, num_outputs)
    occurring = (int(label) for label in np.unique(data.labels) if label >= 0)
    missing = [each for each in occurring if found[each] is None]
    if missing:
        raise _unknown(data, missing, model, num_outputs)
    return torch.tensor([-1 if each is None else each for each in found]), told


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
    count = int(np.isin(data.labels, missing).sum())
    lacking = _some([data.classes[each] for each in missing])
    has = f"has {_some(model)}" if model else "names none"
    return UserError(
        f"Got data with {len(missing)} of {len(data.classes)} classes that the model does not "
        f"have: {lacking} ({count:,} image{'' if count == 1 else 's'}); the model of "
        f"{num_outputs} outputs {has}; rename the classes as in training, or leave them out."
    )


def _some(names: Sequence[str]) -> str:
    more = " ..." if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
