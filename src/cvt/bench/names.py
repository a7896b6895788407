"""Who takes part in a comparison, and how that is written on the command line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cvt.errors import UserError
from cvt.files import expanded
from cvt.plain import read_yaml
from cvt.systems.catalog import Spec, row_of


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that is trained beside others.

    Args:
        label: What tables, plots and folders call it.
        model: A name of `cvt models`.
        model_args: Changes to its row, such as `{"kv_stride": 1}`.
        changes: Fields of `TrainConfig` in which its training differs from the others', groups as
            mappings: `{"teacher": "resnet18"}`. The table says so, as it is no longer one recipe.
    """

    label: str
    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, model_args: Mapping[str, Any]) -> "Contender":
        """Labels a model by its changes, as `read_contender` reads them, in alphabetical order."""
        args = {name: model_args[name] for name in sorted(model_args)}
        said = ",".join(f"{name}={_said(value)}" for name, value in args.items())
        return cls(label=f"{model}+{said}" if said else model, model=model, model_args=args)

    @property
    def folder(self) -> str:
        """The label as a part of a folder's name."""
        return re.sub(r"[^\w.+=,-]+", "_", self.label)

    @property
    def spec(self) -> Spec:
        """The row with its changes."""
        return row_of(self.model).change(**self.model_args)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for YAML, without the label and without what is empty."""
        plain = {"model": self.model, "model_args": self.model_args, "changes": self.changes}
        return {name: value for name, value in plain.items() if value}


def read_contender(text: str) -> Contender:
    """Reads `cvt_nano_32`, or `cvt_nano_32+kv_stride=1,projection=[conv,conv,linear]`.

    What stands behind the plus are fields of the row with their values; in brackets one a stage.
    """
    model, plus, rest = text.partition("+")
    changes: dict[str, Any] = {}
    # Commas between brackets belong to a value.
    for part in re.split(r",(?![^\[(]*[\])])", rest) if plus else ():
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


def read_base(text: str) -> Contender:
    """Reads what `read_contender` reads, or the model of a run's folder or a YAML config."""
    from cvt.training.defaults import read_recipe
    from cvt.training.run_folder import CONFIG_FILE

    path = expanded(text)
    if path.is_dir():
        path /= CONFIG_FILE
    elif path.suffix not in (".yaml", ".yml"):
        return read_contender(text)
    config = read_recipe(str(path))
    if "model" not in config:
        raise UserError(f"The config {path} names no model to ablate; add one, or give its name.")
    return Contender(label=text, model=config["model"], model_args=config.get("model_args", {}))


def check_labels(contenders: Sequence[Contender]) -> None:
    """Makes sure that there are contenders, and that each has a label and a folder of its own."""
    if not contenders:
        raise UserError("Got no model to compare; name some, `cvt models` lists them all.")
    for names in ([each.label for each in contenders], [each.folder for each in contenders]):
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"Got two contenders called {name!r}, and each needs a name of its own; leave "
                    "one of them out, or rename it."
                )


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_said, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
