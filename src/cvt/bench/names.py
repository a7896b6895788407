"""Who takes part in a comparison, and how that is written on the command line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cvt.errors import UserError
from cvt.files import expanded
from cvt.parts.spec import BackboneSpec
from cvt.plain import read_yaml
from cvt.systems.catalog import row_of

if TYPE_CHECKING:
    from cvt.systems.catalog import Spec


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that is trained beside others.

    Args:
        label: What tables, pictures and folders call it.
        model: A name of `cvt models`.
        model_args: Changes to its row, such as `{"kv_stride": 1}`.
        changes: Fields of `TrainConfig` in which its training differs from the others', groups as
            mappings: `{"teacher": "resnet18"}`. The table says so, as it is no longer one recipe.
    """

    label: str
    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The label as a part of a folder's name."""
        return re.sub(r"[^\w.+=,-]+", "_", self.label)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for YAML, without the label and without what is empty."""
        plain = {"model": self.model, "model_args": self.model_args, "changes": self.changes}
        return {name: value for name, value in plain.items() if value}


def read_contender(text: str) -> Contender:
    """Reads `cvt_nano_32`, or `cvt_nano_32+kv_stride=1,projection=[conv,conv,linear]`.

    What stands behind the plus are fields of the row with their values; in brackets one a stage.

    Raises:
        UserError: A field has no value, or stands twice.
    """
    model, plus, rest = text.partition("+")
    changes: dict[str, Any] = {}
    for part in _split(rest) if plus else ():
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not name or not equals or not value.strip():
            raise UserError(
                f"Got {part!r} in {text!r}, expected FIELD=VALUE; write a variant as in "
                "cvt_nano_32+kv_stride=1,projection=linear."
            )
        if name in changes:
            raise UserError(f"Got {name} twice in {text!r}; leave one of them out.")
        changes[name] = read_yaml(value, f"The value of {name} in {text!r}")
    return Contender(label=text, model=model, model_args=changes)


def check_labels(contenders: Sequence[Contender]) -> None:
    """Makes sure that there are contenders, and that each has a label and a folder of its own.

    Raises:
        UserError: It is not so.
    """
    if not contenders:
        raise UserError("Got no model to compare; name some, `cvt models` lists them all.")
    for what in ("label", "folder"):
        twice = _first_twice(getattr(each, what) for each in contenders)
        if twice is not None:
            raise UserError(
                f"Got two contenders called {twice!r}, and each needs a name of its own; leave one "
                "of them out, or rename it."
            )


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _split(text: str) -> list[str]:
    """Splits at commas that are in no brackets."""
    return re.split(r",(?![^\[(]*[\])])", text)


# --- What is ablated: a row, a row with changes, or the model of a run.


@dataclass(frozen=True, kw_only=True)
class Base:
    """A row and what is changed in it before anything else is.

    Args:
        spec: The row with its changes.
    """

    model: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    spec: BackboneSpec

    @property
    def label(self) -> str:
        """The base as one word: `cvt_nano_32`, `cvt_nano_32+kv_stride=1`."""
        return write_label(self.model, self.changes)

    @property
    def working(self) -> tuple[int, ...]:
        """The stages that have blocks; T2T-ViT's first two are embeddings alone."""
        return tuple(i for i, stage in enumerate(self.spec.stages) if stage.depth)

    def column(
        self, name: str, values: Iterable[Any], stages: Iterable[int] | None = None
    ) -> list[Any]:
        """Returns a field for every stage: the given values, and the base's own elsewhere.

        Args:
            values: One for each of `stages`, which are by default those with blocks.
        """
        column = [getattr(stage, name) for stage in self.spec.stages]
        for i, value in zip(self.working if stages is None else stages, values, strict=True):
            column[i] = value
        return column

    def contender(self, changes: Mapping[str, Any]) -> Contender:
        """Returns the base with further changes, the same contender for the same network.

        A column that is alike in all stages is written as one value, and what changes nothing is
        left out: so the base itself is one contender, whichever table asks for it.
        """
        columns = {name: _short(value) for name, value in changes.items()}
        real = {
            name: value
            for name, value in columns.items()
            if self.spec.change(**{name: value}) != self.spec
        }
        args = {**self.changes, **real}
        args = {name: args[name] for name in sorted(args)}
        return Contender(label=write_label(self.model, args), model=self.model, model_args=args)


def read_base(text: str) -> Base:
    """Reads `cvt_nano_32`, `cvt_nano_32+kv_stride=1`, a run's folder or a YAML config.

    Raises:
        UserError: As `read_row` does; or the network is none of stages, so that the tables'
            changes cannot be made in it.
    """
    contender, spec = read_row(text)
    if spec.staged is None:
        raise UserError(
            f"Got {contender.model} as the base, which is not made of stages that Tables 5 to 8 "
            "could change; take a row of ViT, DeiT, CPVT, PVT or CvT."
        )
    args = {name: contender.model_args[name] for name in sorted(contender.model_args)}
    return Base(model=contender.model, changes=args, spec=spec.staged)


def read_row(text: str) -> "tuple[Contender, Spec]":
    """Reads what `read_base` reads, whatever network it is.

    Raises:
        UserError: No such row (the nearest is named), field or file.
    """
    contender = _of_config(text) or read_contender(text)
    return contender, row_of(contender.model).change(**contender.model_args)


def write_label(model: str, changes: Mapping[str, Any]) -> str:
    """Writes what `read_contender` reads."""
    said = [f"{name}={_said(value)}" for name, value in changes.items()]
    return f"{model}+{','.join(said)}" if said else model


def _of_config(text: str) -> Contender | None:
    """Reads model and changes from a run's folder or a YAML file; None if the text is neither."""
    from cvt.training.defaults import read_recipe
    from cvt.training.run_folder import CONFIG_FILE

    path = expanded(text)
    if path.is_dir():
        path /= CONFIG_FILE
    elif path.suffix not in (".yaml", ".yml"):
        return None
    config = read_recipe(str(path))
    if "model" not in config:
        raise UserError(f"The config {path} names no model to ablate; add one, or give its name.")
    return Contender(label=text, model=config["model"], model_args=config.get("model_args", {}))


def _short(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return value[0] if all(each == value[0] for each in value) else list(value)


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_said, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
