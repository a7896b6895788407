"""A model to measure, and what it or its checkpoint says about how to measure it."""

import os
from pathlib import Path

from cvt.data import RunData
from cvt.errors import UserError
from cvt.files import expanded
from cvt.parts.contract import VisionModel
from cvt.train.checkpoints import newest
from cvt.train.config import load_config
from cvt.train.identity import read_run_facts
from cvt.train.run_folder import CONFIG_FILE
from cvt.train.world import World
from cvt.weights.record import Preprocessing, Record
from cvt.zoo.create import load


def open_model(model: str | Path | VisionModel, world: World) -> VisionModel:
    """Returns the model itself, or that of a checkpoint, which the main process fetches first.

    Raises:
        UserError: It cannot be loaded.
    """
    if isinstance(model, str | Path):
        return world.in_turn(lambda: load(model))
    return model


def class_names_of(network: VisionModel) -> tuple[str, ...] | None:
    """Returns one name per output, or None if they are not known.

    Raises:
        UserError: A picture may show several of the classes at once.
    """
    record = _record_of(network)
    if record is not None and record.multi_label:
        raise UserError(
            "Got a model whose classes may hold together (multi_label), expected one that names a "
            "single class; `cvt predict` says the probability of each."
        )
    return record.class_names if record else None


def preprocessing_of(network: VisionModel) -> Preprocessing:
    """Returns the checkpoint's own, or what timm's configuration of the model says.

    Raises:
        UserError: The model says nothing.
    """
    record = _record_of(network)
    if record is not None:
        return record.preprocessing
    cfg = getattr(network, "pretrained_cfg", None)
    if cfg is not None:
        return Preprocessing.from_timm(dict(cfg)).with_channels(network.in_chans)
    raise UserError(
        f"Got a {type(network).__name__} that does not say how to prepare pictures; "
        "give a checkpoint, or a model made by cvt.load or cvt.create_model."
    )


def run_data(model: str | Path | VisionModel) -> RunData | None:
    """Returns what the run that made a checkpoint learned from; None if no run lies beside it."""
    if not isinstance(model, str | Path):
        return None
    checkpoint = expanded(model)
    folder = checkpoint if os.path.isdir(checkpoint) else checkpoint.parent
    if not os.path.isfile(folder / CONFIG_FILE):
        return None
    config = load_config(folder / CONFIG_FILE)
    return RunData(
        name=config.data,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        digests=_digests(folder),
    )


def _digests(run: Path) -> dict[str, tuple[int, str]]:
    """Returns what a run's last checkpoint says about its data, if there is one."""
    try:
        return read_run_facts(newest(run)).identity.data
    except UserError:
        return {}


def _record_of(network: VisionModel) -> Record | None:
    record = getattr(network, "record", None)
    return record if isinstance(record, Record) else None
