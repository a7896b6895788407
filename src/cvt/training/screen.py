"""What a run shows while it works: a bar on a terminal, plain lines anywhere else."""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cvt.data.augment import Augment
from cvt.errors import shown
from cvt.files import quiet
from cvt.training.config import GROUPS, MixConfig, OptimConfig, TrainConfig
from cvt.training.run_folder import EpochRow

_LINE_EVERY_S = 300.0  # where there is no bar, a log should show that the run is alive
_MUCH_WAITING = 0.1
_LEAST_BAR = 12
_QUITE_ANOTHER = 0.2  # so that a machine with other work is not told of all the time


class Screen:
    """Prints the config, a line an epoch, and on a terminal a bar over all updates.

    Args:
        total: Updates of the whole run.
        done: Updates made before, in a run that goes on.
        shown: False keeps all of it quiet.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.console = Console(
            file=quiet(sys.stdout), quiet=not shown, highlight=False, emoji=False
        )
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
            transient=True,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task("starting", total=total, completed=done, figures="")
        self._to_do = total - done
        self._told = max(total, 1)
        self._done = 0
        self._since = 0.0
        self._num_workers = 0
        self._has_accelerator = False
        self._has_advised = False
        self._said_at = time.monotonic()

    def __enter__(self) -> "Screen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, which a terminal breaks between words alone."""
        say_wrapped(self.console, text)

    def report(self, text: str) -> None:
        """Prints text of our own that has several lines, each whole: there are commands among."""
        for line in text.split("\n"):
            self.console.print(Text(shown(line, len(line))), soft_wrap=True)

    def describe(self, config: TrainConfig, facts: str, processes: int = 1) -> None:
        """Prints what the run is about to do, derived values included.

        Args:
            facts: A sentence or more about data, model and machine.
        """
        self._num_workers = config.num_workers
        self._has_accelerator = config.device != "cpu"
        self.say(facts)
        lines = config_lines(config, processes)
        widest = max(map(len, lines))
        for group, line in lines.items():
            say_wrapped(self.console, line, f"  {group:<{widest}}  ", _SETTINGS)

    @contextmanager
    def stages(self) -> Generator[tuple[Callable[[str, int], None], Callable[[int], None]]]:
        """Shows a second bar: yields what begins a stage of so many steps, and what advances it."""
        task = self.bar.add_task("", figures="")

        def start(words: str, total: int) -> None:
            self.bar.reset(task, total=total or None, description=words)

        yield start, lambda count: self.bar.advance(task, count)
        self.bar.remove_task(task)

    def update(
        self,
        epoch: str,
        loss: float,
        lr: float,
        images_per_s: float,
        data_wait: float = 0.0,
        memory_mb: float = 0.0,
    ) -> None:
        """Moves the bar by one update; without a bar, prints a line every five minutes.

        Args:
            epoch: The epoch in hand, of how many.
            data_wait: Share of its time without a batch to work on, 0 to 1; said if it is much.
            memory_mb: Most memory in use so far; 0 is not said.
        """
        self._done += 1
        if self._done == 1:  # not timed: caches, compilers and loaders are still getting ready
            self._since = time.monotonic()
        figures = [f"{self._time_left()} left", f"loss {loss:.3f}", f"{images_per_s:,.0f} images/s"]
        figures += [f"waits for data {data_wait:.0%}"] if self._is_much(data_wait) else []
        figures += [f"lr {lr:.1e}"]
        figures += [say_memory(memory_mb)] if memory_mb else []
        description = f"epoch {epoch}"
        room = self.console.width - len(description) - _LEAST_BAR
        self.bar.update(
            self.task, advance=1, description=description, figures=_fitting(figures, room)
        )
        if self.bar.disable and time.monotonic() - self._said_at > _LINE_EVERY_S:
            self._said_at = time.monotonic()
            self.say("  ".join([description, *figures]))

    def replan(self, total: int, done: int) -> None:
        """Goes on with another number of updates of the whole run; says so if it is quite another.

        Args:
            done: Updates made so far.
        """
        if abs(total / self._told - 1) > _QUITE_ANOTHER:
            pace = "slower" if total < self._told else "quicker"
            self.say(
                f"This goes {pace} than thought: {total:,} updates in all, not {self._told:,}."
            )
            self._told = total
        self._to_do = self._done + total - done
        self.bar.update(self.task, total=total)

    def epoch(self, row: EpochRow, epochs: int, is_best: bool) -> None:
        """Prints the line of a finished epoch; a star marks the best so far.

        On a terminal it holds the figures that fit; all of them are in the run's metrics.
        """
        width = len(str(epochs))
        figures = [
            f"epoch {row.epoch:>{width}}/{epochs}",
            f"train loss {row.train_loss:.4f}",
            f"val loss {row.val_loss:.4f}",
            f"top-1 {row.val_top1:6.2f} %{' *' if is_best else '  '}",
            *([f"lr {row.lr:.1e}"] if row.lr else []),
            f"{row.images_per_s:,.0f} images/s",
            say_memory(row.memory_mb),
        ]
        room = self.console.width if self.console.is_terminal else sum(map(len, figures)) + 99
        self.say(_fitting(figures, room).rstrip())
        if self._is_much(row.data_wait) and not self._has_advised:
            self._has_advised = True
            workers, cores = self._num_workers, os.cpu_count() or 1
            advice = (
                f"more workers may help (--num-workers, now {workers} on {cores} cores)."
                if workers < cores
                else f"{workers} workers keep all {cores} cores busy, so only smaller files or "
                "lighter augmentation help."
            )
            waited = f"{row.data_wait:.0%} of the training time went by waiting for images"
            self.say(f"{waited}: {advice}")

    def _time_left(self) -> str:
        """By the session's own pace, validation and writing included."""
        if self._done < 2:
            return "-"
        seconds = (time.monotonic() - self._since) / (self._done - 1)
        return say_time(seconds * (self._to_do - self._done))

    def _is_much(self, data_wait: float) -> bool:
        """Whether preparing images holds up the network; on a CPU both need the same cores."""
        return self._has_accelerator and data_wait > _MUCH_WAITING


def _fitting(figures: list[str], room: int) -> str:
    """Joins as many figures, the first ones, as a line has room for."""
    text = figures[0]
    for figure in figures[1:]:
        if len(text) + 2 + len(figure) > room:
            break
        text += f"  {figure}"
    return text


# --- Lines that fit a terminal.

_WORDS = (re.compile(" "),)
# Names stay with their values, and lists whole, where there is room for them.
_SETTINGS = (re.compile(r"(?<=,) (?![^\[]*\])"), re.compile(r" (?![^\[]*\])"), re.compile(" "))


def say_wrapped(
    console: Console, text: str, head: str = "", breaks: Sequence[re.Pattern[str]] = _WORDS
) -> None:
    """Prints a line that may hold strangers' names; on a terminal as lines that fit.

    Args:
        head: Stands before it; the lines that follow are indented alike.
        breaks: The blanks at which it may be broken; the later ones where a part fits no line.
    """
    room = console.width - len(head) if console.is_terminal else None
    for number, line in enumerate(_lines(shown(text), room, breaks)):
        start = " " * len(head) if number else head
        console.print(Text(f"{start}{line}"), soft_wrap=True)


def _lines(text: str, room: int | None, breaks: Sequence[re.Pattern[str]]) -> list[str]:
    """Breaks text into lines; a word that is wider than the room has one of its own."""
    if room is None or cell_len(text) <= room or not breaks:
        return [text]
    lines: list[str] = []
    for part in breaks[0].split(text):
        if lines and cell_len(lines[-1]) + 1 + cell_len(part) <= room:
            lines[-1] += f" {part}"
        else:
            lines += _lines(part, room, breaks[1:])
    return lines


# --- A config as people read it: grouped, derived values explained, what is off put last.

_GROUPS = {
    "model": (
        "model", "model_args", "weights", "drop_path_rate", "freeze", "head", "fast", "ema_decay",
    ),
    "teacher": ("teacher", "teacher_args"),
    "length": (
        "epochs", "updates", "minutes", "patience", "batch_size", "accum_steps", "image_size",
        "seed",
    ),
    "machine": (
        "device", "precision", "parallel", "num_workers", "compile", "grad_checkpointing",
        "channels_last", "sync_bn", "deterministic",
    ),
    "keeping": ("out", "checkpoint_minutes", "keep_checkpoints"),
}  # fmt: skip
CALL = ("resume", "force", "download")
"""Settings that say how a run was called, not what it does."""

_OFF = ("none", "off", "fresh", "", {})
# The number that switches a field off; for all others zero is a value like any other.
_OFF_AT = {
    "drop_path_rate": 0, "ema_decay": 0, "clip_grad": 0, "weight_decay": 0, "warmup_epochs": 0,
    "hflip": 0, "color_jitter": 0, "re_prob": 0, "mixup": 0, "cutmix": 0, "smoothing": 0,
    "layer_decay": 1, "repeats": 1, "accum_steps": 1,
}  # fmt: skip


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a config's plain data with the names that the command line knows, `optim.lr`."""
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping) and name in GROUPS:
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def config_lines(config: TrainConfig, processes: int = 1) -> dict[str, str]:
    """Returns a line for each group of fields: those in use with their values, then those off."""
    plain = config.to_dict()
    nested = {name: plain.pop(name) for name in GROUPS}
    if not config.is_taught:
        del nested["distill"]
    grouped = {group: {name: plain.pop(name) for name in _GROUPS[group]} for group in _GROUPS}
    rest = {name: value for name, value in plain.items() if name not in CALL}
    unread = _unread(config, processes)
    lines = {}
    for group, values in ({"data": rest} | grouped | nested).items():
        used = {
            name: value
            for name, value in values.items()
            if name not in unread and not _is_off(name, value)
        }
        said = ", ".join(
            _said(name, value, config, processes).removeprefix(f"{group} ")
            for name, value in used.items()
        )
        off = [
            name
            for name, value in values.items()
            if value in (0, "off") and name not in used and not (config.fast and name in unread)
        ]
        if group in nested and off:
            said += f"{'; ' * bool(said)}off: {', '.join(off)}"
        if said:
            lines[group] = said
    return lines


def _is_off(name: str, value: Any) -> bool:
    return value is None or value is False or value in _OFF or value == _OFF_AT.get(name)


def _unread(config: TrainConfig, processes: int) -> set[str]:
    """The fields that nothing reads because of what another field says."""
    augment = config.augment
    unread = {
        "base_lr": True,  # said with lr
        "momentum": config.optim.opt != "sgd",
        "scale": augment.crop != "random_resized",
        "ratio": augment.crop != "random_resized",
        "color_jitter": augment.auto_augment != "off",
        "re_mode": not augment.re_prob,
        "parallel": processes == 1,
        "sync_bn": processes == 1,
        "accum_steps": True,  # said with batch_size
        "teacher": not config.is_taught,
        "teacher_args": not config.is_taught,
        "tau": config.distill is None or config.distill.kind != "soft",
    }
    if config.fast:
        unread |= dict.fromkeys(_NOT_FAST, True) | {"hflip": False}
    return {name for name, is_unread in unread.items() if is_unread}


# What nothing reads in a fast run, or follows from its being one.
_NOT_FAST = (
    *("epochs", "updates", "freeze", "head", "drop_path_rate", "grad_checkpointing"),
    *(each.name for group in (OptimConfig, MixConfig, Augment) for each in fields(group)),
)


def _said(name: str, value: Any, config: TrainConfig, processes: int) -> str:
    if value is True:
        return name
    text = f"{name} {say_value(value)}"
    if name == "lr" and config.optim.base_lr:
        base_lr, batch_size = config.optim.base_lr, config.batch_size
        if abs(base_lr * batch_size / 512 - value) < 1e-9:
            text += f" = {base_lr:g} * {batch_size} / 512"
    if name == "batch_size" and (processes > 1 or config.accum_steps > 1):
        share = value / processes / config.accum_steps
        text += f" = {processes} processes * {config.accum_steps} steps * {share:g} images"
    return text


def say_value(value: Any) -> str:
    """Returns a field's value in the words of the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(say_value, value))}]"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={say_value(item)}" for name, item in value.items())
    return str(value)


# --- Times and sizes as people say them.


def say_time(seconds: float) -> str:
    """Returns a duration in its two largest units: `45 s`, `3 min 5 s`, `2 h 14 min`, `3 d 2 h`.

    What is not known, nan, is `-`.
    """
    if math.isnan(seconds):
        return "-"
    total = max(round(seconds), 0)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    minutes = round(total / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(total / 3600)
    return f"{hours // 24} d {hours % 24} h"


def say_about(seconds: float) -> str:
    """Returns a duration that is known roughly, in one unit: `0.03 s`, `45 s`, `7 min`, `3.5 h`."""
    for size, unit in ((5400, 3600), (90, 60)):
        if seconds >= size:
            rounded = float(f"{seconds / unit:.2g}")
            return f"{rounded:,g} {'h' if unit == 3600 else 'min'}"
    return f"{float(f'{seconds:.2g}'):g} s"


def say_memory(megabytes: float) -> str:
    """Returns a size, given in MB of 2**20 bytes, in those or in GB of 2**30."""
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def say_count(number: int) -> str:
    """Returns a number of parameters: `950`, `12.3 k`, `3.8 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
