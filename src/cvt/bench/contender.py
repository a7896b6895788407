"""Who takes part in a comparison, and how that is written on the command line."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cvt.errors import UserError
from cvt.plain import read_yaml


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
