"""A model's answers for one split of some data, and what they are worth."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from cvt.data import ImageSet, Selection, select
from cvt.evaluate.answers import Pace, answers
from cvt.evaluate.classes import matched_labels
from cvt.evaluate.evaluation import Evaluation, summarise
from cvt.evaluate.model_facts import class_names_of, open_model, preprocessing_of, run_data
from cvt.parts.contract import VisionModel
from cvt.train.world import join_world


def evaluate(
    model: str | Path | VisionModel,
    data: str | ImageSet,
    *,
    split: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_start: Callable[[int], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measures a model on a split of the data, prepared as its checkpoint says.

    Data that comes without splits is measured whole; but if it is what the checkpoint's run, in
    whose folder it lies, learned from, only the validation pictures that the run held out are.
    Classes are matched by name; some of the model's may be missing. Started by torchrun, every
    process has to call this; they share the pictures, each of which counts once, and all return
    the same.

    Args:
        model: A checkpoint, a run's folder (its best weights), a published name, or a model.
        data: As for training, or a set of pictures.
        split: `train`, `val`, `test` or `all`; by default test if the data has it, or else val,
            or else all.
        batch_size: Pictures per forward pass, in each process.
        precision: `float32`, `bf16`, or `auto`, which is bf16 on GPUs that compute in it.
        on_start: Called with the number of pictures that this process is about to go through.
        on_batch: Called after each batch with its number of pictures.

    Raises:
        UserError: Model or data cannot be used, their classes do not fit, or no picture is
            readable. A single bad one is skipped and named in the result.
    """
    pace = Pace(batch_size, num_workers, device, precision, on_start, on_batch)
    with join_world(device) as world:
        network = open_model(model, world)
        if isinstance(data, str):
            run = run_data(model)
            read = partial(select, data, split, data_dir=data_dir, download=download, run=run)
            chosen = world.in_turn(read)
        else:
            chosen = Selection(images=data, split="all", num_found=len(data), notes=data.notes)
        names = class_names_of(network)
        labels_of, told = matched_labels(chosen.images, names, network.num_classes)
        said = answers(network, chosen.images, preprocessing_of(network), pace, world)
    result = summarise(replace(said, labels=labels_of[said.labels]), names or chosen.images.classes)
    return replace(
        result,
        split=chosen.split,
        num_found=chosen.num_found,
        split_was_cut=chosen.was_cut,
        notes=(*chosen.notes, *told),
        bad=(*chosen.unreadable, *result.bad),
    )
