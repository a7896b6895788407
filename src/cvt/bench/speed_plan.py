"""From the command line's words to what is measured, and against what."""

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from cvt.bench.speed_case import (
    DTYPES,
    INT8,
    TASKS,
    Entrant,
    Pins,
    Setting,
    check_one_of,
    read_pins,
)
from cvt.bench.speed_form_names import check_forms, named_form
from cvt.bench.speed_forms import FORMS
from cvt.bench.speed_models import check_name
from cvt.errors import UserError

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
