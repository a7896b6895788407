"""What is said and kept when a run has ended: the figures, the files, what to type next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import Annotated, Any

from cvt.errors import UserError, shown
from cvt.figures import drawing, words
from cvt.files import atomic_write
from cvt.plain import NOT_FINITE, Range, from_others, json_text, read_json_file, to_plain
from cvt.training.config import TrainConfig
from cvt.training.run_folder import (
    BATCH_FILE,
    BEST_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    EVENTS_FOLDER,
    LAST_WEIGHTS,
    METRICS_FILE,
    MISTAKES_FILE,
    MISTAKES_TABLE,
    RESULT_FILE,
    Ended,
    EpochRow,
    best_epoch,
)
from cvt.training.screen import say_time

_Percent = Annotated[float, Range(0, 100)]
_Nats = Annotated[float, NOT_FINITE]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to; accuracies in percent, losses in nats.

    Args:
        run: The run's folder.
        data: Name of the data, as it was given.
        best_epoch: The epoch, from 1, whose weights are in `best.safetensors`.
        best_top1: Its accuracy on the validation split.
        best_loss: Its loss there.
        test_top1: The same weights' accuracy on the test split, or None if the data has none.
        test_loss: Their loss there.
        seconds: Time from the call to the end, of the last session if the run was resumed.
        bad: A sentence for each image that could not be read.
        test_top5: Top-5 accuracy on the test split, where there are more than five classes.
        ended: What its length came from: epochs, updates, minutes or patience.
    """

    run: Path
    data: str
    best_epoch: Annotated[int, Range(1)]
    best_top1: _Percent
    best_loss: _Nats
    test_top1: _Percent | None = None
    test_loss: _Nats | None = None
    seconds: Annotated[float, Range(0)]
    bad: tuple[str, ...] = ()
    test_top5: _Percent | None = None
    ended: Ended = ""

    @property
    def has_mistakes(self) -> bool:
        """Whether an image of the validation or the test split was taken for another class."""
        return self.best_top1 < 100 or (self.test_top1 is not None and self.test_top1 < 100)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON; figures that do not exist are left out."""
        return to_plain(self, none=False)


def save_result(run: Path, result: TrainResult) -> None:
    """Writes `result.json`, by which a run is known to be finished."""
    with atomic_write(run / RESULT_FILE, "w") as file:
        file.write(json_text(result.to_dict(), indent=2) + "\n")


def read_result(run: Path) -> TrainResult | None:
    """Reads a finished run's result, wherever the run lies now; None of one not finished."""
    path = run / RESULT_FILE
    if not path.exists():
        return None
    plain = read_json_file(path)
    if not isinstance(plain, dict):
        raise UserError(f"{path} is not the result of a run; remove it and resume the run.")
    return from_others(TrainResult, {**plain, "run": run}, str(path))


_ENDED_BY = {
    "minutes": ", when its minutes were up",
    "patience": ", when its patience ran out",
}


def report(result: TrainResult) -> str:
    """Returns the closing text for people."""
    lines = [
        "",
        f"Done in {say_time(result.seconds)}{_ENDED_BY.get(result.ended, '')}. "
        f"Best epoch {result.best_epoch}: "
        f"validation top-1 {result.best_top1:.2f} %, loss {result.best_loss:.4f}.",
    ]
    if result.test_top1 is not None:
        lines.append(f"Test top-1 {result.test_top1:.2f} %, loss {result.test_loss:.4f}.")
    if result.bad:
        lines.append(f"{len(result.bad)} images could not be read and were skipped.")
    run, data, beside = (
        quote(shown(each)) for each in (result.run, result.data, result.run.parent)
    )
    exported = quote(shown(export_name(result.run)))
    files = {
        CARD_FILE: "what was trained, on what, how, and how good it is",
        f"{BEST_WEIGHTS}, {LAST_WEIGHTS}": "weights that describe themselves",
        f"{METRICS_FILE}, {CURVES_FILE}": "every epoch, as a table and as a plot",
        _there(result.run, BATCH_FILE): "what the network saw in training, with its labels",
        _there(result.run, MISTAKES_FILE, MISTAKES_TABLE): "the most confident wrong answers"
        if result.has_mistakes
        else "empty, as no answer was wrong",
        _there(result.run, CONFUSION_FILE): "which classes were taken for which",
        f"{EVENTS_FOLDER}/": "the same, and single updates, for TensorBoard",
        CONFIG_FILE: "everything that the run was told",
    }
    commands = (
        f"cvt eval {run} {data}",
        f"cvt predict {run} IMAGE",
        f"cvt export {run} {exported}",
        f"cvt runs {beside}",
        f"tensorboard --logdir {run}",
    )
    files.pop("", None)
    width = max(map(len, files))
    lines += ["", f"Written to {shown(result.run)}:"]
    lines += [f"  {name:<{width}}  {content}" for name, content in files.items()]
    lines += ["", "Next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def _there(run: Path, *names: str) -> str:
    """Which of these files a run has; drawing is an extra, and there may be nothing to draw."""
    return ", ".join(name for name in names if (run / name).exists())


def export_name(run: Path) -> str:
    """Returns a file to export a run to, in a format that this machine can write."""
    has_onnx = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
    return f"{run.resolve().name}.{'onnx' if has_onnx else 'pt2'}"


# --- What makes training images harder than those of validation, in words.


def seen_as(config: TrainConfig) -> list[str]:
    """Returns sentences on how the images of a batch were varied and mixed."""
    augment, mix = config.augment, config.mix
    crop = {"random_resized": "cut at random", "pad": "shifted", "none": ""}[augment.crop]
    policy = augment.auto_augment
    colour = (
        f"changed by {policy}" if policy != "off" else "recoloured" * (augment.color_jitter > 0)
    )
    steps = [crop, "flipped" * (augment.hflip > 0), colour, "partly erased" * (augment.re_prob > 0)]
    said = _listed(list(filter(None, steps)))
    notes = [f"Each is {said} by chance; another epoch sees it otherwise."] if said else []
    kinds = [name for name in ("mixup", "cutmix") if getattr(mix, name)]
    if kinds:
        notes += [f"Mixed in pairs by {' or '.join(kinds)}: the shares are those of each label."]
    return notes


def harder_by(config: TrainConfig, drops_path: bool) -> list[str]:
    """Returns what is on that raises the training loss and not that of validation.

    Args:
        drops_path: Whether the network leaves out branches at random in training.
    """
    augment, mix = config.augment, config.mix
    is_varied = augment.crop != "none" or augment.auto_augment != "off" or augment.color_jitter
    reasons = {
        "augmentation": is_varied or augment.re_prob,
        "mixing": mix.mixup or mix.cutmix,
        "label smoothing": mix.smoothing,
        "drop path": drops_path,
        "the teacher": config.is_taught,
        "yes-or-no loss": mix.loss == "bce",
    }
    return [name for name, is_on in reasons.items() if is_on]


# --- Plots of runs: losses, accuracy and learning rate over the epochs.

_TRAINING, _VALIDATION, _RATE, _BEST, _REST = "#7f7f7f", "#1f77b4", "#2ca02c", "#d62728", "#c8c8c8"
_MARKED_UP_TO = 15
_NAMED_UP_TO = 10


def interval(top1: float, num_images: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a percentage that was measured on so many images.

    Wilson, J. Amer. Statist. Assoc. 22 (1927): unlike the usual one it stays within 0 and 100.
    """
    from scipy.stats import binomtest

    right = binomtest(round(top1 / 100 * num_images), num_images)
    low, high = right.proportion_ci(method="wilson")
    return 100 * float(low), 100 * float(high)


def save_curves(
    path: Path,
    history: Sequence[EpochRow],
    title: str,
    num_val: int,
    harder: Sequence[str] = (),
) -> None:
    """Draws accuracy, losses and, small, the learning rate, one above the other, into a PNG.

    The epoch whose weights were kept is marked, with the interval that its accuracy is known to.

    Args:
        num_val: Images that the accuracies were measured on.
        harder: What raises the training loss alone (`harder_by`).
    """
    best = best_epoch(history)
    with drawing(path, dpi=120, figsize=(7.2, 7.6), layout="constrained") as figure:
        accuracy, losses, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
        _draw_accuracy(accuracy, history, best, num_val)
        why = f", raised by {_listed(harder)}" if harder else ""
        _plot(losses, history, "train_loss", color=_TRAINING, label=fill(f"training{why}", 48))
        _plot(losses, history, "val_loss", color=_VALIDATION, label="validation")
        losses.plot(best.epoch, best.val_loss, "o", color=_BEST, markersize=6)
        losses.legend(frameon=False, loc="best")
        losses.set_ylabel("loss (nats)")
        _plot(rate, history, "lr", width=1.2, color=_RATE)
        rate.set_ylabel("learning rate")
        rate.set_ylim(bottom=0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for axes in (accuracy, losses, rate):
            _tidy(axes)
        for axes in (accuracy, losses):
            axes.set_xlabel("")
        figure.suptitle(words(title, 70), fontsize=12, weight="bold")


def _draw_accuracy(axes: Any, history: Sequence[EpochRow], best: EpochRow, num_val: int) -> None:
    low, high = interval(best.val_top1, num_val)
    _plot(axes, history, "val_top1", color=_VALIDATION)
    said = f"95 % interval of {num_val:,} images: {low:.1f} to {high:.1f} %"
    axes.axhspan(low, high, color=_BEST, alpha=0.1, linewidth=0, label=said)
    axes.errorbar(
        best.epoch, best.val_top1, [[best.val_top1 - low], [high - best.val_top1]], fmt="o",
        color=_BEST, markersize=6, capsize=4,
        label=f"best: {best.val_top1:.2f} % in epoch {best.epoch}",
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="best")
    if len(history) == 1:
        axes.set(xlim=(0.5, 1.5), ylim=(0, 100))
    axes.set_ylabel("validation top-1 (%)")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _plot(
    axes: Any, history: Sequence[EpochRow], name: str, width: float = 1.6, **more: Any
) -> None:
    marker = "." if len(history) < _MARKED_UP_TO else ""
    values = [getattr(row, name) for row in history]
    axes.plot([row.epoch for row in history], values, marker=marker, linewidth=width, **more)


def save_comparison(
    path: Path, panels: Mapping[str, Sequence[tuple[str, Sequence[EpochRow]]]]
) -> None:
    """Draws the validation top-1 of many runs into a PNG, a panel for each data set.

    Args:
        panels: By data set, the runs' names and epochs, the best run first. The first ten have
            colours and names, the rest are grey.
    """
    count = max(len(panels), 1)
    with drawing(path, dpi=120, figsize=(9, 4.2 * count), layout="constrained") as figure:
        for axes, (data, runs) in zip(
            figure.subplots(count, squeeze=False)[:, 0], panels.items(), strict=False
        ):
            _draw_panel(axes, data, runs)


def _draw_panel(axes: Any, data: str, runs: Sequence[tuple[str, Sequence[EpochRow]]]) -> None:
    for number, (name, history) in reversed(list(enumerate(runs))):
        if number < _NAMED_UP_TO:
            label = f"{best_epoch(history).val_top1:.2f}  {_short(name)}"
            _plot(axes, history, "val_top1", color=f"C{number}", label=label)
        else:
            _plot(axes, history, "val_top1", width=0.8, color=_REST)
    handles, labels = axes.get_legend_handles_labels()
    rest = len(runs) - len(handles)
    title = f"best, run (and {rest} more in grey)" if rest else "best, run"
    axes.legend(
        handles[::-1], labels[::-1], frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0),
        title=title, alignment="left",
    )  # fmt: skip
    axes.set_title(f"Validation top-1 (%) on {words(data)}")
    axes.set_ylim(bottom=_after_the_climb([history for _, history in runs]))
    _tidy(axes)


def _after_the_climb(histories: Sequence[Sequence[EpochRow]]) -> float | None:
    """Returns where an axis may begin: below all runs' ends and their epochs past the climb.

    Final accuracies lie close together; the first epochs would press them into one line.
    """
    longest = max(len(history) for history in histories)
    if longest < _MARKED_UP_TO:
        return None
    ends = [history[-1].val_top1 for history in histories]
    later = [row.val_top1 for history in histories for row in history[longest // 4 :]] + ends
    return min(later) - 0.05 * (max(later) - min(later))


def _tidy(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    name = words(name, 1000)
    return name if len(name) <= 40 else f"…{name[-39:]}"
