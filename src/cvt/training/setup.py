"""A run, and everything it needs before its first update, built from the config and the data."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from cvt.data import (
    Batch,
    DataSplits,
    ImageSet,
    Share,
    eval_transform,
    load_data,
    outermost,
    train_transform,
)
from cvt.data.cache import Cache
from cvt.data.transforms import Transform
from cvt.errors import UserError
from cvt.files import expanded
from cvt.parts.model import VisionModel, num_params
from cvt.plain import to_plain, write_yaml
from cvt.runtime import (
    World,
    choose_device,
    faster_precision,
    generators_kept,
    seed_all,
    seed_position,
)
from cvt.systems.catalog import row_of
from cvt.systems.timm_networks import OF_BUILDER
from cvt.training.checkpoints import (
    Identity,
    Tensors,
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
    told_start,
    with_start,
)
from cvt.training.losses import Teacher, check_teacher, find_teacher, make_mixer
from cvt.training.pace import (
    Clock,
    Limits,
    clock_from_now,
    make_scheduler,
    measure_pace,
    needed,
    say_length,
)
from cvt.training.run_folder import CONFIG_FILE, Ended, Progress, is_run, make_run_folder
from cvt.training.screen import say_about
from cvt.training.step import Learner, eval_batches, make_learner, train_batches
from cvt.weights.record import Record, RunData
from cvt.weights.source import open_weights
from cvt.zoo.create import create_model, loaded
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


@dataclass(kw_only=True)
class Run(Learner):
    """A run, ready for its next update: `config` has no gaps, `progress` says where it is.

    `notes` are sentences that the user should read before it goes on; `clock` tells how long this
    session has taken, loading included, and `spent_before` what the ones before it took.
    """

    config: TrainConfig
    folder: Path
    world: World
    splits: DataSplits
    identity: Identity
    device: torch.device
    record: Record
    augmented: Transform
    plain: Transform
    cache: Cache
    progress: Progress
    clock: Clock = field(default_factory=clock_from_now)
    spent_before: float = field(init=False)
    scheduler: Scheduler = field(init=False)
    saved_at: float = field(default_factory=time.monotonic)
    drawn_at: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.progress.plan
        self.spent_before = self.progress.spent
        self.scheduler = make_scheduler(
            self.optimizer,
            self.config.optim,
            plan.length if plan else self.total_updates,
            self.updates_per_epoch,
            in_minutes=plan is not None,
        )

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; the last one may be cut short by updates or minutes."""
        return -(-self.total_updates // self.updates_per_epoch)

    @property
    def updates_per_epoch(self) -> int:
        """Full batches that the training images make; the rest sits an epoch out."""
        return updates_per_epoch(self.config, self.splits)

    @property
    def total_updates(self) -> int:
        """Updates of the whole run, as far as it is planned."""
        plan = self.progress.plan
        most = plan.total if plan else most_updates(self.config, self.splits)
        assert most is not None, "a run in minutes has a plan"
        return most

    @property
    def limits(self) -> Limits | None:
        """Within what it has to end, where it has to end in time."""
        return limits_of(self.config, self.splits)

    @property
    def spent(self) -> float:
        """Seconds that all sessions have taken."""
        return self.spent_before + self.clock()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train or to validate."""
        is_through = self.done_updates == self.total_updates and not self.progress.batch
        return bool(self.progress.ended) or is_through

    @property
    def ends_by(self) -> Ended:
        """What the run ends by after the epoch in hand, unless its patience does."""
        if self.done_updates < self.total_updates:
            return ""
        if self.total_updates == most_updates(self.config, self.splits):
            return "updates" if self.config.updates else "epochs"
        return "minutes"

    @property
    def is_validated(self) -> bool:
        """Whether the epoch in hand is, when its updates are made."""
        plan, epoch = self.progress.plan, self.progress.epoch + 1
        return plan is None or plan.is_validated(epoch, self.updates_per_epoch)

    @property
    def updates_of_epoch(self) -> int:
        """Updates of the epoch in hand."""
        left = self.total_updates - self.progress.epoch * self.updates_per_epoch
        return min(left, self.updates_per_epoch)

    @property
    def done_updates(self) -> int:
        """Updates made so far, in this session and before."""
        done = self.progress.epoch * self.updates_per_epoch + self.progress.batch
        return min(done, self.total_updates)

    @property
    def lr(self) -> float:
        """Learning rate of the last update; with layer decay, that of the classifier."""
        if self.config.fast:
            return 0.0  # nothing is stepped
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def tensors(self) -> Tensors:
        """What a checkpoint holds of tensors."""
        ema = self.network.ema
        return Tensors(
            model=self.network.model,
            optimizer=self.optimizer,
            ema=None if ema is None else ema.module,
            scaler=self.step.scaler,
        )

    def set_lr(self, update: int) -> None:
        """Sets the learning rate of an update, counted from 0, a function of number and plan."""
        update, plan = max(update, 0), self.progress.plan
        self.scheduler.step_update(cast("int", plan.position(update) if plan else update))

    def train_loader(self) -> Iterable[Batch]:
        """Returns this process's chunks of the batches of the epoch in hand not done yet."""
        at, kept = self.progress, self.cache.train
        return train_batches(
            self.config, self.splits.train, self.augmented, self.world, at.epoch, at.batch, kept
        )

    def first_images(self, most: int) -> tuple[Tensor, Tensor]:
        """Returns up to so many images of the run's first batch as the network gets them.

        They are (B, C, H, W), with labels (B,) or, mixed, shares of labels (B, classes) without
        smoothing. It is a function of config and data, and leaves the generators as they were.
        """
        config, world = self.config, self.world
        mixer = make_mixer(replace(config.mix, smoothing=0.0), len(self.splits.classes))
        with generators_kept():
            batch = outermost(
                self.splits.train,
                self.augmented,
                batch_size=config.batch_size,
                seed=config.seed,
                repeats=config.augment.repeats,
                share=Share(world.rank, world.size, config.accum_steps),
                most=most,
            )
            images, labels = batch.images, batch.labels
            if mixer is not None and len(labels) > 1:
                seed_all(config.seed, 0, 0, world.rank)  # as before the first update
                images, labels = mixer(images, labels)
        return images[:most], labels[:most]

    def eval_loader(self, images: ImageSet) -> Iterable[Batch]:
        """Returns this process's share of a split, in order, without augmentation."""
        kept = self.cache.val if images is self.splits.val else None
        return eval_batches(self.config, images, self.plain, self.world, kept)

    def describe(self) -> str:
        """Returns sentences about data, model, device, processes and teacher."""
        splits, world, taught = self.splits, self.world, ""
        sizes = f"{len(splits.train):,} training and {len(splits.val):,} validation images"
        if splits.test is not None:
            sizes += f", {len(splits.test):,} for the final test"
        cut = " (validation cut from training)" if splits.val_was_cut else ""
        processes = f"{world.size} processes ({self.config.parallel}), " if world.size > 1 else ""
        fast = (
            "Fast: a linear classifier of the features of its weights is fitted, and nothing else. "
        ) * self.config.fast
        teacher, distill = self.step.teacher, self.config.distill
        if teacher is not None and distill is not None:
            own = self.record.spec.distilled
            where = "a classifier of its own" if own else "the only classifier"
            taught = (
                f"Taught by {teacher.name} ({teacher.num_params:,} parameters): {distill.kind} "
                f"distillation into {where}. "
            )
        return (
            f"{splits.name}: {sizes}{cut}, {len(splits.classes)} classes. "
            f"{self.record.model}: {num_params(self.network.model):,} parameters, "
            f"{processes}on {self.device} in {self.config.precision}. {taught}{fast}"
            f"Run folder: {self.folder}"
        )


def updates_per_epoch(config: TrainConfig, splits: DataSplits) -> int:
    """Returns how many full batches the training images make."""
    return len(splits.train) // config.batch_size


def most_updates(config: TrainConfig, splits: DataSplits) -> int | None:
    """Returns the updates that a config names, or None where it names minutes alone."""
    if config.updates is not None or config.epochs is None:
        return config.updates
    return config.epochs * updates_per_epoch(config, splits)


def limits_of(config: TrainConfig, splits: DataSplits) -> Limits | None:
    """Returns within what a run has to end, where it has to end in time."""
    if config.minutes is None:
        return None
    return Limits(
        seconds=60 * config.minutes,
        updates_per_epoch=updates_per_epoch(config, splits),
        most_updates=most_updates(config, splits),
    )


# --- How one is built: anew, or from where it was saved.


def prepare(
    asked: Layer,
    world: World,
    hold: Callable[[Path], None] | None = None,
    clock: Clock | None = None,
    tells_length: bool = False,
) -> Run:
    """Loads the data, derives the config, builds model and optimiser, and makes the run's folder.

    With `resume`, or after torchrun restarted its processes, all of it is put back to where the
    run was saved. What such a folder says decides what is read, as it did when the run was begun;
    but nothing is fetched that is not asked for anew, and nothing written elsewhere.

    Args:
        hold: Marks the run's folder as in training, before anything in it is read; None leaves it.
        clock: Tells since when minutes are counted; by default from here on.
        tells_length: Look how long the run will take, which takes a moment, also without need.
    """
    hold, clock = hold or (lambda folder: None), clock or clock_from_now()
    with world.alike():
        return _prepare(_after_restart(asked, world), world, hold, clock, tells_length)


def _prepare(
    asked: Layer, world: World, hold: Callable[[Path], None], clock: Clock, tells_length: bool
) -> Run:
    folder = None
    if "resume" in asked:
        folder = expanded(asked["resume"])
        if world.on_main(lambda: is_run(folder)):
            hold(folder)
        # Killed before its first checkpoint was saved, a run begins again: nothing is lost.
        config_file = folder / CONFIG_FILE
        if not world.on_main(lambda: config_file.exists() and not has_checkpoint(folder)):
            return _resume(asked, folder, world, clock)
        asked = said(resumed(load_config(config_file), asked).to_dict(), "the config")
    told = {**USUAL, **asked}
    device = _device(told["device"], world)
    splits = _splits(told, world)
    seed_position(told["seed"])
    config, model, record = _new_model(asked, splits, device)
    config, tried = _with_precision(config, model, device, world)
    check_batch(config, len(splits.train), world.size)
    teacher, notes = _teacher(config, record, splits, device, world)
    progress = Progress()
    if config.minutes is not None or tells_length:
        progress, length = _planned(config, model, record, splits, device, world, teacher, clock)
        notes = length + notes
    if folder is None:
        # After a loss before the first checkpoint there is nothing in a folder to keep.
        made = Path(config.out) if world.is_restarted and config.out else None
        folder = world.on_main(lambda: made or make_run_folder(config))
        hold(folder)
    config = replace(config, out=str(folder), resume=None)
    run = _assemble(config, folder, splits, device, model, record, world, teacher, progress, clock)
    why, better = told_start(asked, config)
    run.notes += [*why, *tried, *notes, *better]
    return run


# A look at the pace takes at most so much of the run, or as long; shorter runs need none.
_SHARE_OF_MINUTES, _LONGEST_LOOK_S = 0.03, 10.0
_SHARE, _SHORTEST_S, _FEWEST_UPDATES = 0.015, 10.0, 50


# What takes seconds to import, so that the plan need not guess how many.
_NEEDED_AT_THE_END = ("matplotlib.figure", "huggingface_hub.repocard", "jinja2", "scipy.stats")


def _planned(
    config: TrainConfig,
    model: VisionModel,
    record: Record,
    splits: DataSplits,
    device: torch.device,
    world: World,
    teacher: Teacher | None,
    clock: Clock,
) -> tuple[Progress, list[str]]:
    """Looks at the pace, and returns the start of a run with its plan, and how long it takes."""
    limits, most = limits_of(config, splits), most_updates(config, splits)
    if limits is not None:
        for name in _NEEDED_AT_THE_END:
            import_module(name)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)

    def most_s(update: float) -> float:
        if limits is not None:
            return min(_SHARE_OF_MINUTES * limits.seconds, _LONGEST_LOOK_S)
        whole = update * (most or 0)
        return 0.0 if whole < _SHORTEST_S else min(_SHARE * whole, _LONGEST_LOOK_S)

    if limits is None and (config.compile or (most or 0) < _FEWEST_UPDATES):
        return Progress(), []
    pace = measure_pace(
        replace(config, compile=False),  # which takes longer than all the rest
        model,
        record.preprocessing,
        splits,
        device,
        world=world,
        teacher=teacher,
        most_s=most_s,
    )
    if pace is None:
        return Progress(), []
    plan = None if limits is None else world.on_main(lambda: limits.plan(pace, clock()))
    total = plan.total if plan else most
    every = plan.validate_every if plan else 1
    length = say_length(pace, updates_per_epoch(config, splits), total or 0, limits, every)
    return Progress(plan=plan, pace=pace), [length]


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


def _say_left(run: Run) -> list[str]:
    pace, limits, at = run.progress.pace, run.limits, run.done_updates
    if pace is None or run.is_over:
        return []
    if limits is not None:
        left = limits.seconds - run.spent
    else:
        left = needed(pace, run.updates_per_epoch, 1, at, run.total_updates)
    return [f"About {say_about(left)} are left."] if left > 0 else []


def _resume(asked: Layer, folder: Path, world: World, clock: Clock) -> Run:
    checkpoint = world.on_main(lambda: newest(folder))
    facts = read_run_facts(checkpoint)
    stored = facts.identity
    config = resumed(TrainConfig.from_dict(facts.config), asked)
    config = same_chunks(config, stored.chunks, world.size)
    if (config.minutes is None) != (facts.progress.plan is None):
        raise UserError(
            f"Got minutes {config.minutes} for a run that was begun with"
            f"{'out' if facts.progress.plan is None else ''} any; start a new run from its weights."
        )
    device = _device(config.device, world)
    splits = _splits(config.to_dict(), world)
    record = Record.from_dict(facts.record)
    spec = record.spec
    model = build(record.model, spec, num_classes=spec.num_classes, in_chans=spec.in_chans)
    teacher, notes = _teacher(config, record, splits, device, world)
    config = replace(config, out=str(folder), resume=None, force=False)
    run = _assemble(
        config, folder, splits, device, model, record, world, teacher, facts.progress, clock
    )
    if not asked.get("force"):
        stored.check(run.identity)
    check_batch(config, len(splits.train), world.size)
    load_tensors(checkpoint, run.tensors)
    run.set_lr(run.done_updates - 1)
    run.notes += _say_left(run) + notes
    run.notes += [
        f"The checkpoint {each} is half written or was changed; going on from {checkpoint.name}."
        for each in passed_over(folder, checkpoint)
    ]
    return run


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


def _device(name: str, world: World) -> torch.device:
    return choose_device(name, world.local_rank if world.size > 1 else None)


def _splits(told: Layer, world: World) -> DataSplits:
    where = {name: told[name] for name in _DATA}
    return world.in_turn(lambda: load_data(told["data"], **where, download=told["download"]))


def _new_model(
    asked: Layer, splits: DataSplits, device: torch.device
) -> tuple[TrainConfig, VisionModel, Record]:
    """Derives the config and builds its model; of `weights`, if it starts from some."""
    facts = measure(splits)
    asked = with_start(asked, facts)
    opened = open_weights(asked["weights"]) if "weights" in asked else None
    start = opened[1] if opened else None
    config = derive(asked, facts, device, start)
    changes = changes_at_side(config, row_changes(asked if start else config.to_dict()), start)
    changes["num_classes"] = len(splits.classes)
    if opened:
        model = loaded(*opened, source=asked["weights"], **changes)
    else:
        model = cast("VisionModel", create_model(config.model, **changes))
    model.spec.grids((config.image_size, config.image_size))  # refuses a size that it does not take
    record = Record(
        model=config.model.partition(".")[0],
        spec=model.spec,
        preprocessing=preprocessing_for(config, model.in_chans, start),
        class_names=splits.classes,
        licence=start.licence if start else None,
        source=f"trained on {splits.name}",
    )
    return config, model, record


def changes_at_side(
    config: TrainConfig, changes: Mapping[str, Any], start: Record | None
) -> dict[str, Any]:
    """Returns a row's changes, with the image size of a network that is made for one.

    Its position tables are drawn for that size then, and those to start from brought to it.
    """
    spec = start.spec if start else row_of(config.model.partition(".")[0])
    is_open = spec.change(**changes).is_sized and "img_size" not in changes
    return {**changes, "img_size": config.image_size} if is_open else dict(changes)


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


def row_changes(told: Layer) -> dict[str, Any]:
    """Returns what a config changes in its model's row; refuses what is not for it to say."""
    args, drop_path_rate = told.get("model_args", {}), told.get("drop_path_rate")
    for name in args:
        if name in _NOT_TO_SAY or name in OF_BUILDER:
            why = _NOT_TO_SAY.get(name, "which no checkpoint would know of")
            raise UserError(f"Got model_args {name}, {why}; leave it out.")
    return args if drop_path_rate is None else {**args, "drop_path_rate": drop_path_rate}


def _assemble(
    config: TrainConfig,
    folder: Path,
    splits: DataSplits,
    device: torch.device,
    model: VisionModel,
    record: Record,
    world: World,
    teacher: Teacher | None,
    progress: Progress,
    clock: Clock,
) -> Run:
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    learner = make_learner(model, config, len(splits.classes), device, world, teacher)
    taught_by = (teacher.name, teacher.digest) if teacher else ()
    identity = Identity.of(splits, world.size * config.accum_steps, taught_by)
    trained_on = RunData(
        name=config.data,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        digests=identity.data,
    )
    most = progress.plan.total if progress.plan else most_updates(config, splits) or 0
    return Run(
        **vars(learner),
        config=config,
        folder=folder,
        world=world,
        splits=splits,
        identity=identity,
        device=device,
        record=replace(record, trained_on=trained_on),
        augmented=train_transform(record.preprocessing, config.augment),
        plain=eval_transform(record.preprocessing),
        cache=Cache(
            splits,
            -(-most // max(updates_per_epoch(config, splits), 1)),
            3 * math.prod(record.preprocessing.size),
            int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        ),
        progress=progress,
        clock=clock,
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
        asked = with_start(asked, facts)
        start = open_weights(asked["weights"])[1] if "weights" in asked else None
    except UserError as error:
        why = " ".join(str(error).split())
        return f"# Not derived, null stands for what will be: {why}\n" + write_yaml(_as_said(asked))
    config = derive(asked, facts, device, start)
    changes, side = row_changes(config.to_dict()), config.image_size
    changes = changes_at_side(config, changes, start)
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
