"""The training loop, read from top to bottom, and what it leaves in the run's folder."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from cvt.data import Batch, ImageSet, batch_names, dead_workers_explained
from cvt.errors import UserError
from cvt.evaluation import (
    Guesses,
    Logits,
    Mistakes,
    class_scores,
    list_mistakes,
    save_batch,
    save_confusion,
    save_mistakes,
    validate,
)
from cvt.figures import if_possible
from cvt.files import atomic_write, remove_left_behind
from cvt.parts.model import num_params
from cvt.plain import to_plain, write_yaml
from cvt.runtime import (
    Interrupted,
    StopRequest,
    World,
    hardware,
    is_lost_peer,
    join_world,
    peak_memory_mb,
    seed_position,
    software,
    stop_requests,
)
from cvt.training.card import CardFacts, write_card
from cvt.training.checkpoints import RunFacts, save_state
from cvt.training.config import Layer, TrainConfig, save_config
from cvt.training.defaults import read_layers, said
from cvt.training.head import FitWatch, forget_features, start_head
from cvt.training.network import set_train_mode
from cvt.training.pace import Clock, Watch, clock_from_now, has_stopped_moving
from cvt.training.report import (
    TrainResult,
    harder_by,
    report,
    save_curves,
    save_result,
    seen_as,
)
from cvt.training.run_folder import (
    BATCH_FILE,
    BEST_WEIGHTS,
    CONFIG_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    LAST_WEIGHTS,
    MISTAKES_FILE,
    MISTAKES_TABLE,
    EpochRow,
    Events,
    held,
    write_metrics,
)
from cvt.training.screen import Screen
from cvt.training.setup import Run, prepare
from cvt.training.step import NonFinite, StepResult, on_device, train_step
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint


def train(
    data: str | Path | TrainConfig | None = None,
    *,
    recipe: str | Path | Sequence[str | Path] = (),
    progress: bool = True,
    clock: Clock | None = None,
    **settings: Any,
) -> TrainResult:
    """Trains a classifier and leaves a run folder with weights, checkpoints, metrics and curves.

    Started by torchrun, all processes train together. The weights of the epoch with the best
    validation top-1 are kept beside the last ones and, if the data has a test split, measured on
    it once, at the end. The generators of Python, numpy and torch are seeded anew at every update.

    Args:
        data: digits (the default), a folder of images, parquet files, torch/cifar10, hfds/...;
            or a whole `TrainConfig`.
        recipe: A recipe's name or a YAML file, or several: later ones override earlier.
        progress: Print what happens.
        clock: Tells the seconds that `minutes` are made of, those before the call included.
        settings: Fields of `TrainConfig`, which override recipes: `epochs=3`, groups as dicts,
            `optim={"lr": 1e-3}`. What nobody says follows from data and device.

    Raises:
        NonFinite: The loss or the gradient is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the state was saved, and `resume` goes on exactly from there.
    """
    plain, whole, clock = to_plain(settings), {}, clock or clock_from_now()
    if isinstance(data, TrainConfig):
        whole = said(data.to_dict(), "the config")
    elif data is not None:
        plain = {"data": str(data), **plain}
    recipes = [recipe] if isinstance(recipe, str | Path) else recipe
    asked = read_layers(map(str, recipes), said(plain, "the settings"), whole)
    return train_as_asked(asked, progress, clock)


def train_as_asked(asked: Layer, progress: bool, clock: Clock) -> TrainResult:
    """Trains as `train` does, from all that was said as one layer."""
    with dead_workers_explained(), join_world(asked.get("device", "auto")) as world:
        try:
            return _run(asked, world, progress, clock)
        except RuntimeError as error:
            if world.size > 1 and is_lost_peer(error):
                raise UserError(
                    f"Process {world.rank} of {world.size} lost touch with another one, which has "
                    "ended or no longer answers; go on with the same processes by --resume."
                ) from error
            raise


@dataclass(kw_only=True)
class _Session:
    """What the loop talks to while it works."""

    run: Run
    screen: Screen
    events: Events
    stop: StopRequest
    watch: Watch | None
    guesses: dict[str, Guesses] = field(default_factory=dict)
    """By split, those of the best weights so far; a session that did not measure them has none."""

    def agree(self, bad: Sequence[str] = ()) -> tuple[bool, bool]:
        """Whether any process is to stop, and whether a checkpoint is due; the same in all.

        Images that could not be read, in whichever process, are made known to all of them.
        """
        run = self.run
        waited = time.monotonic() - run.saved_at
        due = run.world.is_main and waited > 60 * run.config.checkpoint_minutes
        mine = torch.tensor([self.stop.is_set, due, len(bad)], dtype=torch.float32)
        stop, save, skipped = run.world.sum(mine).tolist()
        if skipped:
            self.name_bad([sentence for share in run.world.gather(bad) for sentence in share])
        return bool(stop), bool(save)

    def name_bad(self, sentences: Iterable[str]) -> None:
        """Says which images could not be read, each of them once."""
        for sentence in self.run.progress.note_bad(tuple(sentences)):
            self.screen.say(f"skipped: {sentence}")


def _run(asked: Layer, world: World, shown: bool, clock: Clock) -> TrainResult:
    start = time.monotonic()
    with ExitStack() as stack:

        def hold(folder: Path) -> None:
            world.on_main(lambda: stack.enter_context(held(folder)))

        run = prepare(asked, world, hold, clock, tells_length=shown)
        done, progress = run.done_updates, run.progress
        # An epoch's figures stand at its last update: one that is yet to be measured gets new ones.
        is_unmeasured = progress.batch == run.updates_of_epoch > 0
        # From here on the run can be resumed, if only from its beginning.
        world.on_main(lambda: save_config(run.folder / CONFIG_FILE, run.config))
        screen = stack.enter_context(Screen(run.total_updates, done, shown and world.is_main))
        first = done + (not is_unmeasured) if done else 0
        events = stack.enter_context(Events(run.folder, first, screen.say, enabled=world.is_main))
        stop = stack.enter_context(stop_requests())
        session = _Session(run=run, screen=screen, events=events, stop=stop, watch=watch_of(run))
        answers = _work(session)
        best = run.progress.best
        assert best is not None
        result = TrainResult(
            run=run.folder,
            data=run.config.data,
            best_epoch=best.epoch,
            best_top1=best.val_top1,
            best_loss=best.val_loss,
            test_top1=answers.top_k(1) if answers else None,
            test_loss=answers.loss() if answers else None,
            test_top5=answers.top_k(5) if answers and answers.logits.shape[1] > 5 else None,
            seconds=time.monotonic() - start,
            bad=tuple(run.progress.bad),
            ended=run.progress.ended,
        )
        keep_result(run, result, session.guesses)
        screen.report(report(result))
    return result


def _work(session: _Session) -> Logits | None:
    """Makes the epochs that are not made yet; returns the best weights' answers to the test."""
    run, screen = session.run, session.screen
    screen.describe(run.config, run.describe(), run.world.size)
    for note in (*run.splits.notes, *run.notes):
        screen.say(note)
    session.name_bad(run.splits.unreadable)
    if run.done_updates:
        keep_again(run)
    else:
        if run.config.head == "probed" and not run.progress.head:
            _start_head(session)
        keep_state(run)
    forget_features(run)
    if not run.config.fast:
        show_start(session)
    while not run.is_over:
        _train_epoch(session)
        if run.is_validated:
            _validate_epoch(session)
        else:
            run.progress.next_epoch()
    load_best(run)
    # Interrupted here, nothing is saved: it would be the best weights in place of the last.
    if _VAL not in session.guesses:  # measured by an earlier session
        session.guesses[_VAL] = _measure(session, run.splits.val, save=False).guesses()
    answers = _measure(session, run.splits.test, save=False) if run.splits.test else None
    if answers is not None:
        session.guesses[_TEST] = answers.guesses()
    show_end(session, answers)
    return answers


def _start_head(session: _Session) -> None:
    """Fits the head that the run starts from, which is all that a fast run learns."""
    with session.screen.stages() as (start, advance):

        def check(num_images: int) -> None:
            advance(num_images)
            if session.agree()[0]:
                _leave(session.run, save=True)

        watch = FitWatch(start=start, advance=check, bad=session.name_bad)
        session.screen.say(start_head(session.run, watch))


def _train_epoch(session: _Session) -> None:
    """Makes the updates of the epoch in hand that are not made yet."""
    run, progress = session.run, session.run.progress
    if progress.batch == run.updates_of_epoch:
        return
    set_train_mode(run.network.model, run.config.freeze)
    batches = iter(run.train_loader())
    since, is_first = run.clock(), True
    while progress.batch < run.updates_of_epoch:
        chunks = list(islice(batches, run.config.accum_steps))
        waited = run.clock() - since
        result = make_update(run, chunks)
        progress.batch += 1
        now = run.clock()
        progress.count(result.loss, result.num_images, now - since, waited)
        if session.watch:
            session.watch.update(now - since, waited if is_first and run.config.num_workers else 0)
        since, is_first = now, False
        loss, speed = result.loss, progress.images_per_s
        epoch, memory = f"{progress.epoch + 1}/{run.epochs}", peak_memory_mb(run.device)
        session.screen.update(epoch, loss, run.lr, speed, progress.data_wait, memory)
        session.events.update(run.done_updates, loss, run.lr, result.grad_norm, speed)
        must_stop, must_save = session.agree([each for chunk in chunks for each in chunk.bad])
        is_replanned = _replan(session)
        if must_stop:
            _leave(run, save=True)
        if must_save or is_replanned:
            keep_state(run)


def watch_of(run: Run) -> Watch | None:
    """Returns what looks at the clock of a run in minutes."""
    plan, pace, limits = run.progress.plan, run.progress.pace, run.limits
    return Watch(limits, plan, pace) if plan and pace and limits else None


def _replan(session: _Session) -> bool:
    """Changes the plan of a run in minutes that would end too early or too late; in all alike."""
    run, watch = session.run, session.watch
    plan, done = run.progress.plan, run.done_updates
    if plan is None or watch is None or done == plan.total or not watch.is_due(done):
        return False
    changed = run.world.from_main(watch.replan(plan, done, run.spent))
    if changed is None:
        return False
    run.progress.plan, run.progress.pace = changed, watch.pace
    session.screen.replan(changed.total, done)
    return True


def _validate_epoch(session: _Session) -> None:
    """Measures the epoch in hand, and keeps what came out."""
    run, since = session.run, session.run.clock()
    answers = _measure(session, run.splits.val, save=True)
    memory, patience = peak_memory_mb(run.device), run.config.patience
    row = run.progress.finish_epoch(
        answers.loss(), answers.top_k(1), run.lr, memory, run.ends_by, patience
    )
    if run.progress.best is row:
        session.guesses[_VAL] = answers.guesses()
    # First: what the state does not have behind it is taken back.
    session.events.epoch(run.done_updates, row)
    keep_epoch(run, row)
    session.screen.epoch(row, run.epochs, is_best=run.progress.best is row)
    if kept := run.cache.news():
        session.screen.say(kept)
    best = run.progress.best
    if best and patience is None and not row.ended and _is_worth_stopping(run):
        session.screen.say(
            f"Validation has not moved for a while: Ctrl-C stops here and {BEST_WEIGHTS} keeps "
            f"epoch {best.epoch}; --patience N stops by itself; more data would help "
            "more than more epochs."
        )
    if session.watch:
        session.watch.validation(run.clock() - since)
        run.progress.pace = session.watch.pace


_LONG_S = 60.0  # of a run that is left, to speak of stopping it


def _is_worth_stopping(run: Run) -> bool:
    """Whether validation has just been found to move no more while much time is left."""
    history = run.progress.history
    left = sum(row.seconds for row in history) * (run.epochs / history[-1].epoch - 1)
    return left >= _LONG_S and has_stopped_moving(history, run.epochs, len(run.splits.val))


def make_update(run: Run, chunks: list[Batch]) -> StepResult:
    """Makes one update of this process's chunks of a batch; does not count it."""
    progress, config = run.progress, run.config
    run.set_lr(run.done_updates)
    try:
        result = train_step(
            run.network.forward,
            on_device(chunks, run.device, run.config.channels_last),
            run.loss_fn,
            run.optimizer,
            run.step,
            lambda chunk: seed_position(config.seed, progress.epoch, progress.batch, chunk),
        )
    except NonFinite as error:
        raise _explained(run, error) from None
    if run.network.ema is not None:
        run.network.ema.update(run.network.model, step=run.done_updates + 1)
    return result


def _measure(session: _Session, images: ImageSet, save: bool) -> Logits:
    """Measures a split; asked to stop meanwhile, leaves with or without saving the state."""
    run = session.run

    def check(num_images: int) -> None:
        if session.agree()[0]:
            _leave(run, save)

    answers = validate(
        run.network.product,
        run.eval_loader(images),
        run.device,
        run.config.precision,
        check,
        run.world,
    )
    session.name_bad(answers.bad)
    return answers


def _leave(run: Run, save: bool) -> None:
    if save:
        keep_state(run)
        draw(run)
    progress = run.progress
    where = f"in epoch {progress.epoch + 1} of {run.epochs} after {progress.batch} updates of it"
    if run.is_over:
        where = "after the last epoch"
    raise Interrupted(run.folder, where, is_told_elsewhere=not run.world.is_main)


# --- What a run writes into its folder, in an order that an interruption anywhere leaves usable.

_DRAW_EVERY_S = 60.0  # a plot takes half a second, which short epochs would notice


def keep_epoch(run: Run, row: EpochRow) -> None:
    """Writes a finished epoch: weights if they are the best, state, metrics, at times curves.

    The best weights come first: interrupted after them, the epoch is repeated to the same result.
    """
    if run.progress.best is row:
        _save_weights(run, BEST_WEIGHTS)
    keep_state(run)
    run.world.on_main(lambda: write_metrics(run.folder, run.progress.history))
    if time.monotonic() - run.drawn_at > _DRAW_EVERY_S or run.is_over:
        draw(run)


def keep_again(run: Run) -> None:
    """Writes anew what a session that was killed may have left behind the state it saved."""
    run.world.on_main(lambda: remove_left_behind(run.folder))
    _save_weights(run, LAST_WEIGHTS)
    run.world.on_main(lambda: write_metrics(run.folder, run.progress.history))
    if run.is_over:
        draw(run)


def draw(run: Run) -> None:
    """Draws the curves of the finished epochs, if there are any."""
    title = f"{run.record.model} on {run.splits.name}"
    history = run.progress.history
    if history and run.world.is_main:
        drops = any(getattr(each, "drop_prob", 0) for each in run.network.model.modules())
        harder = harder_by(run.config, drops_path=drops)
        with if_possible():
            save_curves(run.folder / CURVES_FILE, history, title, len(run.splits.val), harder)
    run.drawn_at = time.monotonic()


_VAL, _TEST = "validation", "test"
_FIRST_IMAGES = 16
_MOST_CLASSES = 1000  # of a confusion matrix


def show_start(session: _Session) -> None:
    """Draws what the network sees, once a run, and tells TensorBoard what the run is."""
    run, events = session.run, session.events
    path = run.folder / BATCH_FILE
    if not run.done_updates:
        events.text("description", run.describe(), step=0)
        events.text("config", f"```yaml\n{write_yaml(run.config.to_dict())}```", step=0)
    if not run.world.is_main or path.exists():
        return
    with if_possible():
        images, targets = run.first_images(_FIRST_IMAGES)
        if len(images):
            notes = seen_as(run.config)
            save_batch(path, images, targets, run.splits.classes, run.record.preprocessing, notes)
            events.image("batch", path, step=0)


def show_end(session: _Session, test: Logits | None) -> None:
    """Draws where the best weights are wrong, and tells TensorBoard; `test` are their answers."""
    run, events = session.run, session.events
    if not run.world.is_main:
        return
    sets = {_VAL: run.splits.val, _TEST: run.splits.test or run.splits.val}
    mistakes = [Mistakes.of(name, sets[name], each) for name, each in session.guesses.items()]
    folder, classes = run.folder, run.splits.classes
    with if_possible():
        list_mistakes(folder / MISTAKES_TABLE, mistakes)
        save_mistakes(folder / MISTAKES_FILE, mistakes)
        if len(classes) <= _MOST_CLASSES:
            split, guesses = list(session.guesses.items())[-1]
            save_confusion(folder / CONFUSION_FILE, guesses.confusion(len(classes)), classes, split)
    step = run.done_updates + 1  # of a finished run that is resumed this is taken back
    if test is not None:
        events.test(step, {"top1": test.top_k(1), "loss": test.loss()})
    for name in (MISTAKES_FILE, CONFUSION_FILE):
        events.image(Path(name).stem, folder / name, step)


def keep_state(run: Run) -> None:
    """Writes the weights as they are, and a checkpoint that goes on from them."""
    run.progress.spent = run.world.from_main(run.spent)
    facts = RunFacts(
        config=run.config.to_dict(),
        identity=run.identity,
        record=run.record.to_dict(),
        progress=run.progress,
    )
    keep = run.config.keep_checkpoints
    save_state(run.folder, to_plain(facts), run.tensors, keep=keep, world=run.world)
    _save_weights(run, LAST_WEIGHTS)
    run.saved_at = time.monotonic()


def keep_result(run: Run, result: TrainResult, guesses: Mapping[str, Guesses]) -> None:
    """Writes a finished run's card and, last, the file by which it is known to be finished.

    Args:
        guesses: Those of the best weights, by split.
    """
    split, said = list(guesses.items())[-1]
    facts = CardFacts(
        num_params=num_params(run.network.model),
        num_images={name: count for name, (count, _) in run.identity.data.items()},
        val_was_cut=run.splits.val_was_cut,
        hardware=hardware(run.device, run.world.size),
        processes=run.world.size,
        software=software(),
        classes=class_scores(said, run.splits.classes),
        classes_of=split,
    )
    history = run.progress.history
    run.world.on_main(lambda: write_card(run.config, run.record, result, history, facts))
    run.world.on_main(lambda: save_result(run.folder, result))


def load_best(run: Run) -> None:
    """Puts the best epoch's weights into the model."""
    path = run.folder / BEST_WEIGHTS
    state_dict, _ = load_checkpoint(path)
    options = StateDictOptions(full_state_dict=True)
    try:
        set_model_state_dict(run.network.product, dict(state_dict), options=options)
    except (RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"The best weights are not this run's ({str(error).partition(':')[0]}): {path} was "
            "changed; train again."
        ) from error


def _save_weights(run: Run, name: str) -> None:
    """Writes the weights, their average where one is kept, with the last epoch's figures."""
    row = run.progress.history[-1] if run.progress.history else None
    metrics = {"epoch": row.epoch, "top1": row.val_top1, "loss": row.val_loss} if row else {}
    record = replace(run.record, metrics=metrics)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state_dict = cast(
        "dict[str, Tensor]", get_model_state_dict(run.network.product, options=options)
    )
    run.world.on_main(lambda: save_checkpoint(run.folder / name, state_dict, record))


# --- What is said, and kept, when a loss or a gradient is not a number any more.

_NONFINITE_FILE = "nonfinite.json"


def _explained(run: Run, error: NonFinite) -> NonFinite:
    """Returns the error with where it happened, having written the batch's images to a file."""
    progress, path = run.progress, run.folder / _NONFINITE_FILE
    names = batch_names(
        run.splits.train,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        epoch=progress.epoch,
        repeats=run.config.augment.repeats,
        batch=progress.batch,
    )
    facts = {
        "update": run.done_updates + 1,
        "epoch": progress.epoch + 1,
        "lr": run.lr,
        "loss": str(error.loss),
        "grad_norm": str(error.grad_norm),
        "images": names,
    }

    def write() -> None:
        with atomic_write(path, "w") as file:
            json.dump(facts, file, indent=1)

    try:
        run.world.on_main(write)
        listed = f"are named in {path}"
    except UserError as failure:
        listed = f"could not be listed ({str(failure).rstrip('.')})"
    explanation = NonFinite(
        f"Training stopped at update {facts['update']} (epoch {facts['epoch']}, learning rate "
        f"{run.lr:.3g}): {error}; its {len(names)} images ({names[0]}, ...) {listed}, "
        f"and the last good checkpoint is kept in {quote(str(run.folder))}; look at them, or start "
        "again with a lower --optim.lr or a lower --optim.clip-grad.",
        loss=error.loss,
        grad_norm=error.grad_norm,
    )
    explanation.is_told_elsewhere = not run.world.is_main
    return explanation
