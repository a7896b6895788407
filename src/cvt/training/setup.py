"""Everything a run needs before its first update, built from the config and the data."""

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from torch import nn

from cvt.data import (
    DataSplits,
    eval_transform,
    load_data,
    train_transform,
)
from cvt.errors import UserError
from cvt.files import expanded
from cvt.parts.backbone import Backbone
from cvt.parts.model import VisionModel
from cvt.plain import to_plain, write_yaml
from cvt.runtime import World, choose_device, faster_precision, seed_position
from cvt.training.checkpoints import (
    Identity,
    has_checkpoint,
    load_tensors,
    newest,
    passed_over,
    read_run_facts,
)
from cvt.training.config import USUAL, Layer, TrainConfig, load_config
from cvt.training.defaults import (
    derive,
    measure,
    preprocessing_for,
    resumed,
    said,
    same_chunks,
)
from cvt.training.job import Job
from cvt.training.losses import make_loss
from cvt.training.network import make_network
from cvt.training.run_folder import CONFIG_FILE, Progress, is_run, make_run_folder
from cvt.training.step import StepOptions, make_mixer, make_optimizer
from cvt.training.teacher import Teacher, check_teacher, find_teacher
from cvt.weights.record import Record, RunData
from cvt.weights.source import open_weights
from cvt.zoo.create import create_model, load
from cvt.zoo.timm_models import build

# Of the images that a step is tried with, all together: two of 224 pixels.
_PROBE_PIXELS = 2 * 224**2

# What decides which images a split has.
_DATA = ("data_dir", "val_fraction", "seed")

_NOT_TO_SAY = {
    "num_classes": "which follows from the data",
    "pretrained": "while weights to start from are given by --weights",
    "features_only": "but a classifier is trained here",
    "out_indices": "but a classifier is trained here",
    "pretrained_cfg": "while the size is given by --image-size",
}


def prepare(asked: Layer, world: World, hold: Callable[[Path], None] | None = None) -> Job:
    """Loads the data, derives the config, builds model and optimiser, and makes the run's folder.

    With `resume`, or after torchrun restarted its processes, all of it is put back to where the
    run was saved. What such a folder says decides what is read, as it did when the run was begun;
    but nothing is fetched that is not asked for anew, and nothing written elsewhere.

    Args:
        asked: What was said of the run's config.
        hold: Marks the run's folder as in training, before anything in it is read; None leaves it.
    """
    with world.alike():
        return _prepare(_after_restart(asked, world), world, hold or (lambda run: None))


def _prepare(asked: Layer, world: World, hold: Callable[[Path], None]) -> Job:
    run = None
    if "resume" in asked:
        run = expanded(asked["resume"])
        if world.on_main(lambda: is_run(run)):
            hold(run)
        if not world.on_main(lambda: _is_only_begun(run)):
            return _resume(asked, run, world)
        asked = said(resumed(load_config(run / CONFIG_FILE), asked).to_dict(), "the config")
    told = {**USUAL, **asked}
    device = _device(told["device"], world)
    splits = _splits(told, world)
    seed_position(told["seed"])
    config, model, record = _new_model(asked, splits, device)
    config, tried = _with_precision(config, model, device, world)
    check_batch(config, len(splits.train), world.size)
    teacher, notes = _teacher(config, record, splits, device, world)
    if run is None:
        run = world.on_main(lambda: _run_folder(config, world))
        hold(run)
    config = replace(config, out=str(run), resume=None)
    job = _assemble(config, run, splits, device, model, record, world, teacher)
    job.notes += tried + notes
    return job


def _with_precision(
    config: TrainConfig, model: VisionModel, device: torch.device, world: World
) -> tuple[TrainConfig, list[str]]:
    """Decides between float32 and bf16 where only a try can; the run keeps to it from then on."""
    if config.precision != "auto":
        return config, []
    side = config.image_size
    count = max(2, min(config.batch_size, _PROBE_PIXELS // side**2))
    images = torch.zeros(count, model.in_chans, side, side, device=device)
    chosen, why = world.on_main(lambda: faster_precision(model.to(device), images))
    return replace(config, precision=cast("Any", chosen)), [why]


def _is_only_begun(run: Path) -> bool:
    """Whether a session was killed before it saved its first checkpoint: nothing is lost."""
    return (run / CONFIG_FILE).exists() and not has_checkpoint(run)


def _resume(asked: Layer, run: Path, world: World) -> Job:
    checkpoint = world.on_main(lambda: newest(run))
    facts = read_run_facts(checkpoint)
    stored = facts.identity
    config = resumed(TrainConfig.from_dict(facts.config), asked)
    config = same_chunks(config, stored.chunks, world.size)
    device = _device(config.device, world)
    splits = _splits(config.to_dict(), world)
    record = Record.from_dict(facts.record)
    model = build(
        record.model,
        record.spec,
        num_classes=record.spec.num_classes,
        in_chans=record.spec.in_chans,
    )
    teacher, notes = _teacher(config, record, splits, device, world)
    config = replace(config, out=str(run), resume=None, force=False)
    job = _assemble(config, run, splits, device, model, record, world, teacher)
    if not asked.get("force"):
        stored.check(job.identity)
    check_batch(config, len(splits.train), world.size)
    load_tensors(checkpoint, job.tensors)
    job.progress = facts.progress
    job.set_lr(job.done_updates - 1)
    job.notes += notes
    job.notes += [
        f"The checkpoint {each} is half written or was changed; going on from {checkpoint.name}."
        for each in passed_over(run, checkpoint)
    ]
    return job


def _after_restart(asked: Layer, world: World) -> Layer:
    """Goes on with the run of processes that torchrun lost and started again."""
    if not world.is_restarted or "resume" in asked:
        return asked
    if "out" not in asked:
        raise UserError(
            "A process was lost and torchrun started all of them again, but without --out the run "
            "to go on with is not known; go on by --resume RUN, and give --out next time."
        )
    if has_checkpoint(Path(asked["out"])):
        return {"resume": asked["out"], "device": asked.get("device", "auto")}
    return asked


def _run_folder(config: TrainConfig, world: World) -> Path:
    if world.is_restarted and config.out:
        return Path(config.out)  # lost before its first checkpoint: there is nothing to keep
    return make_run_folder(config)


def _device(name: str, world: World) -> torch.device:
    return choose_device(name, world.local_rank if world.size > 1 else None)


def _splits(told: Layer, world: World) -> DataSplits:
    where = {name: told[name] for name in _DATA}
    return world.in_turn(lambda: load_data(told["data"], **where, download=told["download"]))


def _new_model(
    asked: Layer, splits: DataSplits, device: torch.device
) -> tuple[TrainConfig, VisionModel, Record]:
    """Derives the config and builds its model; of `weights`, if it starts from some."""
    num_classes = len(splits.classes)
    start, start_record = None, None
    if "weights" in asked:
        start = load(asked["weights"], num_classes=num_classes, **row_changes(asked))
        start_record = _record_of(start)
    config = derive(asked, measure(splits), device, start_record)
    changes, side = dict(row_changes(config.to_dict())), config.image_size
    model = start or create_model(config.model, num_classes=num_classes, **changes)
    if any(each.endswith("pos_embed.table") for each in model.state_dict()):
        if start is not None:
            start.set_input_size(side)
        elif "img_size" not in config.model_args:  # a table drawn for it, not one interpolated
            changes["img_size"] = side
            model = create_model(config.model, num_classes=num_classes, **changes)
    model = cast("VisionModel", model)
    record = Record(
        model=config.model.partition(".")[0],
        spec=model.spec,
        preprocessing=preprocessing_for(config, model.in_chans, start_record),
        class_names=splits.classes,
        licence=start_record.licence if start_record else None,
        source=f"trained on {splits.name}",
    )
    return config, model, record


def _teacher(
    config: TrainConfig, record: Record, splits: DataSplits, device: torch.device, world: World
) -> tuple[Teacher | None, list[str]]:
    """Finds and checks the network to learn from, and what the user should know about it."""
    name = config.teacher
    if name is None or not config.is_taught:
        return None, []
    source = world.in_turn(lambda: find_teacher(name, config.teacher_args))
    notes = check_teacher(source, record.preprocessing, tuple(splits.classes))
    return Teacher(source, record.preprocessing, device), notes


def _record_of(model: nn.Module) -> Record:
    record = model.record
    assert isinstance(record, Record)
    return record


def row_changes(told: Layer) -> dict[str, Any]:
    """Returns what a config changes in its model's row; refuses what is not for it to say."""
    args, drop_path_rate = told.get("model_args", {}), told.get("drop_path_rate")
    for name, why in _NOT_TO_SAY.items():
        if name in args:
            raise UserError(f"Got model_args {name}, {why}; leave it out.")
    return args if drop_path_rate is None else {**args, "drop_path_rate": drop_path_rate}


def _assemble(
    config: TrainConfig,
    run: Path,
    splits: DataSplits,
    device: torch.device,
    model: VisionModel,
    record: Record,
    world: World,
    teacher: Teacher | None,
) -> Job:
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    if teacher is not None and model.spec.distilled:
        cast("Backbone", model).set_distilled_training()
    network = make_network(model, config, device, world)
    optimizer = make_optimizer(network.model, config.optim)
    identity = Identity.of(
        splits,
        world.size * config.accum_steps,
        (teacher.name, teacher.digest) if teacher else (),
    )
    trained_on = RunData(
        name=config.data,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        digests=identity.data,
    )
    return Job(
        config=config,
        run=run,
        world=world,
        splits=splits,
        identity=identity,
        device=device,
        network=network,
        record=replace(record, trained_on=trained_on),
        optimizer=optimizer,
        loss_fn=make_loss(config.mix, config.distill if teacher else None),
        step=StepOptions(
            batch_size=config.batch_size,
            num_chunks=config.accum_steps,
            world=world,
            mixer=make_mixer(config.mix, len(splits.classes)),
            norms=network.norms,
            clip_grad=config.optim.clip_grad,
            precision=config.precision,
            scaler=torch.amp.GradScaler(device.type) if config.precision == "fp16" else None,
            teacher=teacher,
        ),
        augmented=train_transform(record.preprocessing, config.augment),
        plain=eval_transform(record.preprocessing),
        progress=Progress(),
    )


def check_batch(config: TrainConfig, num_images: int, world_size: int) -> None:
    """Makes sure that a batch can be had, and shared out to all processes."""
    batch_size, chunks = config.batch_size, world_size * config.accum_steps
    if batch_size > num_images:
        raise UserError(
            f"Got batch_size {batch_size} for {num_images} training images; make it smaller."
        )
    if batch_size % chunks or batch_size < 2 * chunks:
        raise UserError(
            f"Got batch_size {batch_size} for {world_size} processes with accum_steps "
            f"{config.accum_steps}, expected a multiple of {chunks} with two for each; "
            f"take {max(batch_size // chunks, 2) * chunks}, which changes the learning rate too."
        )


# --- What a run would be told, as text, without starting it.


def preview(asked: Layer) -> str:
    """Returns the config that a run would work with as YAML, derived values included.

    Nothing is written or downloaded but weights to start from. Where data or weights are not at
    hand, a comment says so, and null stands for what would be derived.
    """
    if "resume" in asked:
        stored = read_run_facts(newest(expanded(asked["resume"])))
        return write_yaml(resumed(TrainConfig.from_dict(stored.config), asked).to_dict())
    told = {**USUAL, **asked}
    device, changes = choose_device(told["device"]), row_changes(asked)
    if "model" in asked and "weights" not in asked:
        _check_row(asked["model"], changes, asked.get("image_size"))
    try:
        splits = load_data(told["data"], **{name: told[name] for name in _DATA})
        facts = measure(splits)
        start = open_weights(asked["weights"])[1] if "weights" in asked else None
    except UserError as error:
        why = " ".join(str(error).split())
        return f"# Not derived, null stands for what will be: {why}\n" + write_yaml(_as_said(asked))
    config = derive(asked, facts, device, start)
    changes, side = row_changes(config.to_dict()), config.image_size
    if start is not None:
        start.spec.change(**changes).grids((side, side))
    else:
        _check_row(config.model, changes, side)
    check_batch(config, len(splits.train), int(os.environ.get("WORLD_SIZE", "1")))
    return write_yaml(config.to_dict())


def _as_said(asked: Layer) -> dict[str, Any]:
    """All fields of a config: what was said of them, what they usually are, or None."""
    told, groups = {**USUAL, **asked}, get_type_hints(TrainConfig)
    plain = {each.name: told.get(each.name) for each in fields(TrainConfig)}
    for name in ("optim", "augment", "mix"):
        inside = asked.get(name, {})
        plain[name] = {each.name: inside.get(each.name) for each in fields(groups[name])}
    return to_plain(plain)


def _check_row(name: str, changes: Mapping[str, Any], side: int | None) -> None:
    """Builds a network as the run would, without memory for it."""
    with torch.device("meta"):
        model = cast("VisionModel", create_model(name, **changes))
    model.spec.grids((side, side) if side else model.spec.img_size)
