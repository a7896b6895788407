"""From the command line's words to what is measured, and against what."""

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from cvt.bench.speed.forms import FORMS, base_of, check_forms, named_form, read_form
from cvt.bench.speed.models import check_name, is_checkpoint
from cvt.errors import UserError, did_you_mean
from cvt.systems.catalog import ROWS

# --- What `cvt bench` measures: who, in which form and arithmetic, and in which setting.

INT8 = "int8"
DTYPES = ("float32", "bf16", "fp16", INT8)
TASKS = ("inference", "training")


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A model in one form and arithmetic.

    Args:
        model: As `speed_models.build` takes it.
        form: As `speed_form_names.read_form` takes it.
        dtype: One of `DTYPES`.
    """

    model: str
    form: str
    dtype: str

    @property
    def label(self) -> str:
        """The entrant as one word: `cvt_13:eager:float32`."""
        return f"{self.model}:{self.form}:{self.dtype}"

    def can(self, task: str) -> bool:
        """Whether its form can do a task."""
        return task == "inference" or named_form(self.form).entry.train is not None

    @property
    def can_be_made(self) -> bool:
        """Whether there is such a form in that dtype."""
        return self.dtype != INT8 or named_form(self.form).entry.has_passes


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all that are compared with each other.

    Args:
        task: One of `TASKS`.
        device: As torch writes it.
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
class Pins:
    """A model as it is named on the command line, with what is said of its form and dtype."""

    model: str
    form: str | None = None
    dtype: str | None = None

    def entrants(self, forms: Sequence[str], dtypes: Sequence[str]) -> list[Entrant]:
        """Returns the model in all the forms and dtypes, or in those that it is pinned to."""
        return [
            Entrant(model=self.model, form=form, dtype=dtype)
            for form in ([self.form] if self.form else forms)
            for dtype in ([self.dtype] if self.dtype else dtypes)
        ]


def read_pins(text: str) -> Pins:
    """Reads `NAME`, `NAME:FORM`, `NAME:DTYPE` or `NAME:FORM:DTYPE`; NAME may be `module:callable`.

    Raises:
        UserError: What stands behind the name is neither a form nor a dtype (the nearest is named).
    """
    name, *pins = text.split(":")
    is_known = "/" in name or name.partition("+")[0] in ROWS or is_checkpoint(name)
    if pins and not is_known and not read_form(pins[0]) and pins[0] not in DTYPES:
        name = f"{name}:{pins.pop(0)}"
    form = pins.pop(0) if pins and read_form(pins[0]) else None
    dtype = pins.pop(0) if pins and pins[0] in DTYPES else None
    if pins or not all(name.split(":")):
        known = DTYPES if form else (*FORMS, *DTYPES)
        hint = did_you_mean(base_of(pins[0]), known) if pins else ""
        raise UserError(
            f"Got {text!r}, expected NAME, NAME:FORM or NAME:FORM:DTYPE, with a form of "
            f"{', '.join(FORMS)} and a dtype of {', '.join(DTYPES)}.{hint}"
        )
    return Pins(model=name, form=form, dtype=dtype)


def check_one_of(what: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Makes sure that all of them are known.

    Raises:
        UserError: One is not; the nearest is named.
    """
    known = list(known)
    for value in values:
        if value not in known:
            hint = did_you_mean(value, known)
            raise UserError(f"Got {what} {value!r}, expected one of {', '.join(known)}.{hint}")


def say_threads(device: str, threads: int) -> str:
    """Returns `, 2 threads` behind a CPU; what the host does beside an accelerator is left out."""
    return f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""


_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is asked for: every model in every form and dtype, in every setting.

    Args:
        models: `NAME`, or pinned as `NAME:FORM`, `NAME:DTYPE` or `NAME:FORM:DTYPE`.
        threads: None: as many as torch takes by itself.
        base: What the others are divided by, named as models are; None: the first entry. Where it
            leaves its form out it is the first one that it is measured in; where it leaves its
            dtype out, every entry has the base of its own dtype.
        repeats: Rounds, in each of which everything is measured once.
        seconds: How long one measurement times calls at least.
        calibration: Pictures, as `cvt.deploy` takes them by a path or name: what int8 is calibrated
            on, and what entries in another dtype than float32 are compared with float32 on.
        retry: Measure again what has failed before.
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is measured, and what each one is held against.

    Args:
        bases: By entrant the one whose images/s its own are divided by.
    """

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

    def questions(self, config: BenchConfig) -> dict[str, Any]:
        """Returns what `speed_facts.find_facts` is asked."""
        return {
            "models": _unique(each.model for each in self.entrants),
            "forms": _unique(each.form for each in self.entrants),
            "image_sizes": list(config.image_sizes),
            "dtypes": _unique(each.dtype for each in self.entrants),
            "devices": list(config.devices),
            "threads": list(config.threads) if config.threads else None,
            "calibration": config.calibration,
        }


def make_plan(config: BenchConfig) -> Plan:
    """Works out who is measured.

    Raises:
        UserError: Something is not known (the nearest is named), is no number above zero, cannot
            be trained, or is in int8 where that cannot be.
    """
    _check(config)
    entrants = _unique(
        entrant
        for pins in map(_read, config.models)
        for entrant in pins.entrants(config.forms, config.dtypes)
    )
    bases = _bases(entrants, config.base)
    entrants = _unique([*bases.values(), *entrants]) if config.base else entrants
    plan = Plan(entrants=tuple(entrants), bases={**{each: each for each in entrants}, **bases})
    _check_int8(plan, config.calibration)
    _check_tasks(plan, config.tasks)
    return plan


def make_settings(config: BenchConfig, facts: Mapping[str, Any]) -> list[Setting]:
    """Returns every combination, on the devices and with the threads that were found."""
    return [
        Setting(task=task, device=device, threads=threads, image_size=size, batch_size=batch)
        for task, device, threads, size, batch in product(
            config.tasks,
            facts["devices"],
            facts["threads"],
            config.image_sizes,
            config.batch_sizes,
        )
    ]


def _check(config: BenchConfig) -> None:
    if not config.models:
        raise UserError(
            "Got no model to measure; name some, as in cvt bench cvt_13 hf/cvt_13; `cvt models` "
            "lists ours."
        )
    check_forms(config.forms)
    check_one_of("dtype", config.dtypes, DTYPES)
    check_one_of("task", config.tasks, TASKS)
    for name in ("batch_sizes", "image_sizes", "threads"):
        for value in getattr(config, name) or ():
            if value < 1:
                word = name.removesuffix("s").replace("_", " ") if name != "threads" else name
                raise UserError(f"Got {word} {value}, expected 1 or more.")
    if config.repeats < 1:
        raise UserError(f"Got repeats {config.repeats}, expected 1 or more; 5 show the spread.")
    if not 0 < config.seconds < float("inf"):
        raise UserError(f"Got seconds {config.seconds:g}, expected more than zero, as in 2.")


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
    if pins.dtype is None and not named_form(form).entry.has_passes:
        # What it has no int8 for is held against its float32.
        dtypes = _unique("float32" if each == INT8 else each for each in dtypes)
    found = {each: Entrant(model=pins.model, form=form, dtype=each) for each in dtypes}
    return {each: found.get(each.dtype, found[dtypes[0]]) for each in entrants}


def _check_int8(plan: Plan, calibration: str | None) -> None:
    for entrant in plan.entrants:
        if entrant.dtype == INT8 and calibration is None:
            raise UserError(
                f"Got {entrant.label} without pictures to calibrate it on; name a folder or a "
                "parquet file of them by --calibration."
            )
        if not entrant.can_be_made:
            forms = ", ".join(name for name, form in FORMS.items() if form.has_passes)
            raise UserError(
                f"Got {entrant.label}, but int8 is made by the forms {forms} only; name a form for "
                "each entry, as in NAME:FORM:DTYPE."
            )
    if calibration and all(each.dtype == "float32" for each in plan.entrants):
        raise UserError(
            f"Got --calibration {calibration} with float32 alone, which needs none; leave it out, "
            "or add a --dtype."
        )


def _check_tasks(plan: Plan, tasks: Sequence[str]) -> None:
    for entrant in plan.entrants:
        is_base = entrant in plan.bases.values()
        lacking = [task for task in tasks if not entrant.can(task)]
        if lacking and (is_base or len(lacking) == len(tasks)):
            forms = ", ".join(name for name, form in FORMS.items() if form.train)
            what = f"the base {entrant.label}" if is_base else entrant.label
            raise UserError(
                f"Got {what} for training, which its form cannot do; take one of {forms}"
                f"{', or name another --base' if is_base else ''}."
            )


def _unique(values: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(values))


# --- One line of what was measured.


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one process came to; `speed_measure.measure` says what the figures are.

    Args:
        round: From 1.
        images_per_s: None where it failed.
        agreement: For how many of `judged_on` pictures it names the class that float32 does, in %.
        logit_error: The mean error of its logits, in units of their spread.
        load: The machine's load average over the minute before, its own last process included.
        date: When it began, in UTC.
        error: What went wrong, if it failed.
    """

    task: str
    device: str
    threads: int
    image_size: int
    batch_size: int
    model: str
    form: str
    dtype: str
    round: int
    images_per_s: float | None = None
    calls: int | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    memory_mb: float | None = None
    peak_gflops: float | None = None
    agreement: float | None = None
    logit_error: float | None = None
    judged_on: int | None = None
    load: float | None = None
    date: str = ""
    error: str = ""

    @property
    def setting(self) -> Setting:
        """In which setting."""
        return Setting(
            task=self.task,
            device=self.device,
            threads=self.threads,
            image_size=self.image_size,
            batch_size=self.batch_size,
        )

    @property
    def entrant(self) -> Entrant:
        """Who."""
        return Entrant(model=self.model, form=self.form, dtype=self.dtype)

    @property
    def key(self) -> tuple[Setting, Entrant, int]:
        """What it is of."""
        return self.setting, self.entrant, self.round

    @property
    def is_finished(self) -> bool:
        """Whether it went well."""
        return self.images_per_s is not None


def is_whole(
    measured: Sequence[Measurement], setting: Setting, entrants: Sequence[Entrant], round_: int
) -> bool:
    """Whether a round in a setting has everyone, but for those that have failed there already."""
    there = [each for each in measured if each.setting == setting]
    of_round = {each.entrant for each in there if each.round == round_}
    failed = {each.entrant for each in there if not each.is_finished}
    return all(each in of_round | failed for each in entrants)
