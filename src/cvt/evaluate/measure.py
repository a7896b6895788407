"""A model's answers for one split of some data, and what they are worth."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from cvt.data import ImageSet, load_split
from cvt.evaluate.answers import Pace, answers
from cvt.evaluate.classes import matched_labels
from cvt.evaluate.evaluation import Evaluation, summarise
from cvt.evaluate.model_facts import class_names_of, cut_of_run, open_model, preprocessing_of
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

    A validation split that has to be cut out of the training pictures is the same as in the run
    whose folder the checkpoint lies in. Started by torchrun, every process has to call this; they
    share the pictures, each of which counts once, and all return the same.

    Args:
        model: A checkpoint, a run's folder (its best weights), a published name, or a model.
        data: As for training, or a set of pictures.
        split: `train`, `val`, `test` or `all`; by default test if there is one, else val.
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
            cut = cut_of_run(model)
            read = partial(load_split, data, split, data_dir=data_dir, download=download, **cut)
            data = world.in_turn(read)
        names = class_names_of(network)
        labels_of = matched_labels(data.classes, names, network.num_classes)
        said = answers(network, data, preprocessing_of(network), pace, world)
    return summarise(replace(said, labels=labels_of[said.labels]), names or data.classes)
