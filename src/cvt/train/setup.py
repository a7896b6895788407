"""Everything a run needs before its first update, built from the config and the data."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvt.data import (
    Augment,
    DataSplits,
    eval_transform,
    load_data,
    train_transform,
)
from cvt.errors import UserError
from cvt.parts.backbone import Backbone
from cvt.train.checkpoints import TrainState, load_state, resumed_config
from cvt.train.config import AugmentConfig, TrainConfig, known
from cvt.train.defaults import derive, measure, preprocessing_for
from cvt.train.device import choose_device
from cvt.train.job import Job
from cvt.train.optim import make_optimizer, make_scheduler
from cvt.train.progress import Progress
from cvt.train.run_folder import LAST_WEIGHTS, make_run_folder
from cvt.train.seeding import seed_position
from cvt.train.step import make_loss, make_mixer
from cvt.weights.record import Record
from cvt.zoo.create import create_model, load


def prepare(config: TrainConfig) -> Job:
    """Loads the data, derives the config, builds model and optimiser, and makes the run's folder.

    With `config.resume` all of it is put back to where that run was saved.

    Raises:
        UserError: Something in the config, the data or the run to resume cannot be used.
    """
    state = load_state(Path(config.resume)) if config.resume else None
    if state is not None:
        config = resumed_config(config, state.config)
    device = choose_device(config.device)
    splits = load_data(
        config.data,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        download=config.download,
    )
    seed_position(config.seed)
    if state is not None:
        _check_same_data(state, splits)
        run = Path(config.resume or "")
        model = load(run / LAST_WEIGHTS)
        record = _record_of(model)
    else:
        config, model, record = _new_model(config, splits, device)
        run = make_run_folder(config)
    model = model.to(device).train()
    job = _assemble(replace(config, out=str(run), resume=None), run, splits, device, model, record)
    if state is not None:
        job.model.load_state_dict(state.model)
        job.optimizer.load_state_dict(state.optimizer)
        job.progress = state.progress
    return job


def _new_model(
    config: TrainConfig, splits: DataSplits, device: torch.device
) -> tuple[TrainConfig, nn.Module, Record]:
    """Derives the config and builds its model; of `config.weights`, if it starts from some."""
    num_classes = len(splits.classes)
    start, start_record = None, None
    if config.weights:
        start = load(config.weights, num_classes=num_classes, **_changes(config))
        start_record = _record_of(start)
    config = derive(config, measure(splits), device, start_record)
    if known(config.batch_size) > len(splits.train):
        raise UserError(
            f"Got batch_size {config.batch_size} for {len(splits.train)} training images; "
            "make it smaller."
        )
    name = known(config.model)
    model = start or create_model(name, num_classes=num_classes, **_changes(config))
    assert isinstance(model, Backbone)
    record = Record(
        model=name.partition(".")[0],
        spec=model.spec,
        preprocessing=preprocessing_for(config, model.in_chans, start_record),
        class_names=splits.classes,
        licence=start_record.licence if start_record else None,
        source=f"trained on {splits.name}",
    )
    return config, model, record


def _record_of(model: nn.Module) -> Record:
    record = model.record
    assert isinstance(record, Record)
    return record


def _changes(config: TrainConfig) -> dict[str, Any]:
    if config.drop_path_rate is None:
        return config.model_args
    return {**config.model_args, "drop_path_rate": config.drop_path_rate}


def _assemble(
    config: TrainConfig,
    run: Path,
    splits: DataSplits,
    device: torch.device,
    model: nn.Module,
    record: Record,
) -> Job:
    optimizer = make_optimizer(model, config.optim)
    updates_per_epoch = len(splits.train) // known(config.batch_size)
    return Job(
        config=config,
        run=run,
        splits=splits,
        device=device,
        model=model,
        record=record,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config.optim, known(config.epochs), updates_per_epoch),
        loss_fn=make_loss(config.mix),
        mixer=make_mixer(config.mix, len(splits.classes)),
        augmented=train_transform(record.preprocessing, _augment(config.augment)),
        plain=eval_transform(record.preprocessing),
        progress=Progress(),
    )


def _augment(config: AugmentConfig) -> Augment:
    """The data room's form, in which no policy is None rather than "off"."""
    values: dict[str, Any] = asdict(config)
    if config.auto_augment == "off":
        values["auto_augment"] = None
    return Augment(**values)


def _check_same_data(state: TrainState, splits: DataSplits) -> None:
    if len(splits.train) != state.num_images:
        raise UserError(
            f"{splits.name} has {len(splits.train)} training images, but the run to resume was "
            f"started with {state.num_images}; put the data back, or start a new run."
        )
