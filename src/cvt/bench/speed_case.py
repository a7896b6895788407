"""What `cvt bench` measures: who, in which form and arithmetic, and in which setting."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cvt.bench.speed_form_names import base_of, named_form, read_form
from cvt.bench.speed_forms import FORMS
from cvt.bench.speed_models import is_checkpoint
from cvt.errors import UserError, did_you_mean
from cvt.systems.catalog import ROWS

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
