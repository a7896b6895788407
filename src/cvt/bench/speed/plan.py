"""From the command line's words to what is measured, and against what."""

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from cvt.bench.speed.forms import FORMS, Form, base_of, find_form, forms_that, read_form
from cvt.bench.speed.models import check_name, is_checkpoint
from cvt.errors import UserError, did_you_mean, unknown
from cvt.runtime import number_format
from cvt.systems.catalog import ROWS

INT8 = "int8"
DTYPES = ("float32", "bf16", "fp16", INT8)
TASKS = ("inference", "training")

T = TypeVar("T")

# --- Who is measured, and in which setting.


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A model in one form and arithmetic, as `build`, `read_form` and `DTYPES` name them."""

    model: str
    form: str
    dtype: str

    @property
    def label(self) -> str:
        """The entrant as one word: `cvt_13:eager:float32`."""
        return f"{self.model}:{self.form}:{self.dtype}"

    @property
    def made_by(self) -> Form:
        """What happens to the model."""
        return read_form(self.form)

    def can(self, task: str) -> bool:
        """Whether its form can do a task."""
        return task == "inference" or self.made_by.train is not None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all that are compared with each other.

    Args:
        threads: Of the process's matrix and tensor work.
        image_size: Side of the images in pixels.
        batch_size: Images of a forward pass, or of a training step.
    """

    task: str
    device: str
    threads: int
    image_size: int
    batch_size: int

    @property
    def words(self) -> str:
        """The setting as people say it."""
        return (
            f"{self.task}, batch {self.batch_size}, {self.image_size}x{self.image_size} pixels, "
            f"{self.device}{say_threads(self.device, self.threads)}"
        )


@dataclass(frozen=True, kw_only=True)
class Case(Entrant, Setting):
    """An entrant in a setting."""

    @property
    def setting(self) -> Setting:
        """In which setting."""
        return _part(Setting, self)

    @property
    def entrant(self) -> Entrant:
        """Who."""
        return _part(Entrant, self)


def _part(kind: type[T], whole: Case) -> T:
    return kind(**{name: getattr(whole, name) for name in kind.__annotations__})


def say_threads(device: str, threads: int) -> str:
    """Returns `, 2 threads` behind a CPU; what the host does beside an accelerator is left out."""
    return f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""


@dataclass(frozen=True, kw_only=True)
class Pins:
    """A model as it is named on the command line, with what is said of its form and dtype."""

    model: str
    form: str | None = None
    dtype: str | None = None


def read_pins(text: str) -> Pins:
    """Reads `NAME[:FORM][:DTYPE]`, where the name may be `module:callable`."""
    name, *pins = text.split(":")
    is_known = "/" in name or name.partition("+")[0] in ROWS or is_checkpoint(name)
    if pins and not is_known and not find_form(pins[0]) and not _dtype(pins[0]):
        name = f"{name}:{pins.pop(0)}"
    form = pins.pop(0) if pins and find_form(pins[0]) else None
    dtype = _dtype(pins.pop(0)) if pins and _dtype(pins[0]) else None
    if pins or not all(name.split(":")):
        known = DTYPES if form else (*FORMS, *DTYPES)
        hint = did_you_mean(base_of(pins[0]), known) if pins else ""
        raise UserError(
            f"Got {text!r}, expected NAME, NAME:FORM or NAME:FORM:DTYPE, with a form of "
            f"{', '.join(FORMS)} and a dtype of {', '.join(DTYPES)}.{hint}"
        )
    return Pins(model=name, form=form, dtype=dtype)


def _dtype(text: str) -> str | None:
    with suppress(UserError):
        return number_format(text, DTYPES)
    return None


# --- What is asked for.


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is asked for: every model in every form and dtype, in every setting.

    Args:
        models: As `read_pins` takes them.
        threads: None: as many as torch takes by itself.
        base: What the others are divided by, named as models are; None: the first entry. Where it
            leaves its form out it is the first one that it is measured in; where it leaves its
            dtype out, every entry has the base of its own dtype.
        repeats: Rounds, each of which measures everything once.
        seconds: How long one measurement times calls at least.
        calibration: Images, as `cvt.deploy` takes them by a path or name: what int8 is calibrated
            on, and what entries in another dtype than float32 are compared with float32 on.
        out: The results folder; None: one under `runs/` that is named after all of this.
    """

    models: tuple[str, ...]
    forms: tuple[str, ...] = ("eager",)
    dtypes: tuple[str, ...] = ("float32",)
    tasks: tuple[str, ...] = ("inference",)
    devices: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] | None = None
    image_sizes: tuple[int, ...] = (224,)
    batch_sizes: tuple[int, ...] = (16,)
    base: str | None = None
    repeats: int = 5
    seconds: float = 2.0
    calibration: str | None = None
    retry: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError(
                "Got no model to measure; name some, as in cvt bench cvt_13 hf/cvt_13; `cvt "
                "models` lists ours."
            )
        for form in self.forms:
            read_form(form)
        dtypes = _unique(number_format(each, DTYPES) for each in self.dtypes)
        object.__setattr__(self, "dtypes", tuple(dtypes))
        for task in self.tasks:
            if task not in TASKS:
                raise unknown("task", task, TASKS)
        counts = {"batch size": self.batch_sizes, "image size": self.image_sizes,
                  "threads": self.threads or ()}  # fmt: skip
        for name, values in counts.items():
            if min(values, default=1) < 1:
                raise UserError(f"Got {name} {min(values)}, expected 1 or more.")
        if self.repeats < 1:
            raise UserError(f"Got repeats {self.repeats}, expected 1 or more; 5 show the spread.")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"Got seconds {self.seconds:g}, expected more than zero, as in 2.")

    @property
    def folder(self) -> Path:
        """Where the results go: the same for the same bench, so that it can be gone on with."""
        if self.out is not None:
            return self.out
        words = re.sub(r"[^\w.+=-]+", "_", "-".join(self.models[:2]))
        mark = hashlib.sha256(" ".join(self._arguments()).encode()).hexdigest()[:6]
        return Path("runs") / f"bench-{words[:60]}-{mark}"

    @property
    def command(self) -> str:
        """The command that asks for this."""
        rest = ["--repeats", str(self.repeats), "--out", str(self.folder)]
        return shlex.join(["cvt", "bench", *self._arguments(), *rest])

    def _arguments(self) -> list[str]:
        """Returns what makes the bench the one that it is, as the command line has it."""
        flags: dict[str, Iterable[Any] | None] = {
            "--form": self.forms,
            "--dtype": self.dtypes,
            "--task": self.tasks,
            "--device": self.devices,
            "--threads": self.threads,
            "--image-size": self.image_sizes,
            "--batch-size": self.batch_sizes,
            "--base": (self.base,) if self.base else None,
            "--seconds": (f"{self.seconds:g}",),
            "--calibration": (self.calibration,) if self.calibration else None,
        }
        words = list(self.models)
        for flag, values in flags.items():
            words += [flag, ",".join(map(str, values))] if values else []
        return words


# --- What follows from it.


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is measured, and the base by whose images/s each one's own are divided."""

    entrants: tuple[Entrant, ...]
    bases: Mapping[Entrant, Entrant]

    @property
    def base_words(self) -> str:
        """What tables call the base."""
        first, *more = dict.fromkeys(self.bases.values())
        return f"{first.model}:{first.form} in the same dtype" if more else first.label

    def entrants_of(self, task: str) -> list[Entrant]:
        """Returns those whose form can do a task."""
        return [each for each in self.entrants if each.can(task)]

    def all_of(self, field: str) -> list[str]:
        """Returns each model, form or dtype of the entrants once."""
        return _unique(getattr(each, field) for each in self.entrants)


def make_plan(config: BenchConfig) -> Plan:
    """Works out who is measured, and refuses what cannot be."""
    entrants = _unique(
        Entrant(model=pins.model, form=form, dtype=dtype)
        for pins in map(_read, config.models)
        for form in ([pins.form] if pins.form else config.forms)
        for dtype in ([pins.dtype] if pins.dtype else config.dtypes)
    )
    bases = _bases(entrants, config.base)
    if config.base:
        entrants = _unique([*bases.values(), *entrants])
    for entrant in entrants:
        _check_int8(entrant, config.calibration)
        _check_tasks(entrant, config.tasks, is_base=entrant in bases.values())
    if config.calibration and all(each.dtype == "float32" for each in entrants):
        raise UserError(
            f"Got --calibration {config.calibration} with float32 alone, which needs none; leave "
            "it out, or add a --dtype."
        )
    return Plan(entrants=tuple(entrants), bases={each: bases.get(each, each) for each in entrants})


def make_settings(
    config: BenchConfig, devices: Sequence[str], threads: Sequence[int]
) -> list[Setting]:
    """Returns every combination, on the devices and with the threads that were found."""
    return [
        Setting(task=task, device=device, threads=count, image_size=size, batch_size=batch)
        for task, device, count, size, batch in product(
            config.tasks, devices, threads, config.image_sizes, config.batch_sizes
        )
    ]


def _read(text: str) -> Pins:
    pins = read_pins(text)
    check_name(pins.model)
    return pins


def _bases(entrants: Sequence[Entrant], base: str | None) -> dict[Entrant, Entrant]:
    """Returns the base of each entrant; it may be none of them, and is then measured as well."""
    if base is None:
        return {each: entrants[0] for each in entrants}
    pins = _read(base)
    measured = [each for each in entrants if each.model == pins.model]
    form = pins.form or (measured[0].form if measured else "eager")
    own = _unique(each.dtype for each in measured if each.form == form)
    dtypes = [pins.dtype] if pins.dtype else own or _unique(each.dtype for each in entrants)
    if pins.dtype is None and not read_form(form).has_passes:
        # What it has no int8 for is held against its float32.
        dtypes = _unique("float32" if each == INT8 else each for each in dtypes)
    found = {each: Entrant(model=pins.model, form=form, dtype=each) for each in dtypes}
    return {each: found.get(each.dtype, found[dtypes[0]]) for each in entrants}


def _check_int8(entrant: Entrant, calibration: str | None) -> None:
    if entrant.dtype != INT8:
        return
    if calibration is None:
        raise UserError(
            f"Got {entrant.label} without images to calibrate it on; name a folder or a parquet "
            "file of them by --calibration."
        )
    if not entrant.made_by.has_passes:
        raise UserError(
            f"Got {entrant.label}, but int8 is made by the forms "
            f"{forms_that(lambda form: form.has_passes)} only; name a form for each entry, as in "
            "NAME:FORM:DTYPE."
        )


def _check_tasks(entrant: Entrant, tasks: Sequence[str], is_base: bool) -> None:
    lacking = [task for task in tasks if not entrant.can(task)]
    if lacking and (is_base or len(lacking) == len(tasks)):
        what = f"the base {entrant.label}" if is_base else entrant.label
        raise UserError(
            f"Got {what} for training, which its form cannot do; take one of "
            f"{forms_that(lambda form: form.train)}"
            f"{', or name another --base' if is_base else ''}."
        )


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
