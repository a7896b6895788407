"""A model's answers for one split of some data, and what they are worth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cvt.data import ImageSet, eval_transform, load_split, make_loader
from cvt.errors import UserError
from cvt.evaluate.classes import matched_labels
from cvt.evaluate.evaluation import Evaluation, summarise
from cvt.parts.backbone import Backbone
from cvt.train.config import load_config
from cvt.train.device import choose_device, choose_precision
from cvt.train.run_folder import CONFIG_FILE
from cvt.train.validate import Logits, validate
from cvt.weights.record import Preprocessing, Record
from cvt.zoo.create import load


def evaluate(
    model: str | Path | Backbone,
    data: str | ImageSet,
    *,
    split: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measures a model on a split of the data, prepared as its checkpoint says.

    A validation split that has to be cut out of the training pictures is the same as in the run
    whose folder the checkpoint lies in.

    Args:
        model: A checkpoint, a run's folder (its best weights), a published name, or a model.
        data: As for training, or a set of pictures.
        split: `train`, `val`, `test` or `all`; by default test if there is one, else val.
        precision: `float32`, `bf16`, or `auto`, which is bf16 on GPUs that compute in it.
        on_batch: Called after each batch with its number of pictures.

    Raises:
        UserError: Model or data cannot be used, their classes do not fit, or no picture is
            readable. A single bad one is skipped and named in the result.
    """
    network = model if isinstance(model, Backbone) else load(model)
    if isinstance(data, str):
        cut = {} if isinstance(model, Backbone) else _cut_of_run(Path(model))
        data = load_split(data, split, data_dir=data_dir, download=download, **cut)
    record = _record_of(network)
    names = record.class_names if record else None
    where = choose_device(device)
    loader = make_loader(
        data,
        eval_transform(_preprocessing(network)),
        batch_size=batch_size,
        shuffle=False,
        num_workers=num_workers,
    )
    labels_of = matched_labels(data.classes, names, network.num_classes)
    network = network.to(where)
    answers = validate(network, loader, where, choose_precision(precision, where), on_batch)
    answers = Logits(answers.logits, labels_of[answers.labels], answers.bad)
    return summarise(answers, names or data.classes)


def _record_of(network: Backbone) -> Record | None:
    record = getattr(network, "record", None)
    return record if isinstance(record, Record) else None


def _preprocessing(network: Backbone) -> Preprocessing:
    """The checkpoint's own, or what timm's configuration of the model says."""
    record = _record_of(network)
    if record is not None:
        return record.preprocessing
    cfg = getattr(network, "pretrained_cfg", None)
    if cfg is not None:
        return Preprocessing.from_timm(dict(cfg))
    raise UserError(
        f"Got a {type(network).__name__} that does not say how to prepare pictures; "
        "give a checkpoint, or a model made by cvt.load or cvt.create_model."
    )


def _cut_of_run(checkpoint: Path) -> dict[str, Any]:
    """How the run that made a checkpoint cut its validation split out of its data."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if not (folder / CONFIG_FILE).is_file():
        return {}
    config = load_config(folder / CONFIG_FILE)
    return {"seed": config.seed, "val_fraction": config.val_fraction}
