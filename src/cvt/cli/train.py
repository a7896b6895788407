"""`cvt train [DATA]`, and the flags of a training run, which other verbs have too."""

import inspect
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args, get_type_hints

from cyclopts import Group, Parameter
from docstring_parser import parse_from_object

from cvt.cli.flags import Json
from cvt.cli.output import print_json
from cvt.errors import UserError
from cvt.plain import read_yaml
from cvt.training.config import GROUPS, USUAL, TrainConfig

# --- The flags of a training run: `TrainConfig`'s fields, none of them with a value of its own.

_SECTIONS = {
    "What you train": (
        *("data", "data_dir", "download", "val_fraction", "image_size", "model", "model_args"),
        *("drop_path_rate", "weights", "freeze", "head", "out", "resume", "force"),
    ),
    "How long": ("fast", "epochs", "minutes", "updates", "patience", "batch_size", "seed"),
    "Optimiser": ("optim", "ema_decay"),
    "Augmentation": ("augment", "mix"),
    "Machine": ("device", "precision", "num_workers", "accum_steps", "parallel", "compile"),
    "Advanced": (
        *("grad_checkpointing", "channels_last", "sync_bn", "deterministic"),
        *("checkpoint_minutes", "keep_checkpoints", "teacher", "teacher_args", "distill"),
    ),
}
_SHORT = {
    "optim.lr": "--lr",
    "optim.weight_decay": "--weight-decay",
    "mix.mixup": "--mixup",
    "mix.cutmix": "--cutmix",
}


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What a command line says of a training run; None of a field says nothing."""

    def layer(self) -> dict[str, Any]:
        """Returns what was said, as plain data."""
        layer: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            group, _, name = each.name.rpartition("__")
            if isinstance(value, Mapping):
                value = {key.replace("-", "_"): _typed(item) for key, item in value.items()}
            if value is not None:
                (layer.setdefault(group, {}) if group else layer)[name] = value
        return layer


@cache
def train_flags(*without: str, **words: str) -> type[TrainFlags]:
    """Returns flags for the fields of `TrainConfig`, in sections.

    Args:
        without: Fields that are left out.
        words: What the help says of a field where it is not what `cvt train` does with it.
    """
    named = {path: each for path, each in _flags_of(TrainConfig, words) if path not in without}
    made = [
        (path.replace(".", "__"), named[path], field(default=None))
        for section in _SECTIONS.values()
        for top in section
        for path in named
        if path.partition(".")[0] == top
    ]
    flags = make_dataclass("Flags", made, bases=(TrainFlags,), frozen=True, kw_only=True)
    flags.__module__ = __name__  # cyclopts looks into no builtins
    return cast("type[TrainFlags]", flags)


def _flags_of(
    config: type, words: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The fields of a config by their paths, `optim.lr`, as annotations of flags."""
    docs = {each.arg_name: each.description or "" for each in parse_from_object(config).params}
    for name, hint in get_type_hints(config).items():
        path = f"{prefix}{name}"
        if name in GROUPS:
            group = next(each for each in (hint, *get_args(hint)) if inspect.isclass(each))
            yield from _flags_of(group, words, f"{name}.")
        else:
            usual = None if path in words else USUAL.get(path)
            doc = words.get(path) or " ".join(docs[name].split())
            yield path, _flag(path, hint, doc, usual)


def _flag(path: str, hint: Any, doc: str, usual: Any) -> Any:
    top = path.partition(".")[0]
    number = next(n for n, section in enumerate(_SECTIONS.values()) if top in section)
    short = [_SHORT[path]] if path in _SHORT else []
    parameter = Parameter(
        name=[*short, f"--{path.replace('_', '-')}"],
        group=Group(list(_SECTIONS)[number], sort_key=number),
        help=doc,
        negative="",
        show_default=False if usual in (None, {}) or usual is False else lambda _: str(usual),
    )
    if path == "precision":  # has longer names too
        hint = str
    return Annotated[hint | None, parameter]


def _typed(value: Any) -> Any:
    """Reads a value that the command line could only pass on as text: `2`, `true`, `[1, 2, 2]`."""
    if not isinstance(value, str) or not value:
        return value
    try:
        return read_yaml(value)
    except UserError:
        return value


# --- `cvt train`.

if TYPE_CHECKING:
    Flags = TrainFlags
else:
    Flags = train_flags()

Recipe = Annotated[
    tuple[str, ...],
    Parameter(
        name=["--recipe", "--config", "-c"],
        negative="",
        show_default=False,
        help="A recipe's name or a YAML file; later ones, and then flags, override earlier.",
    ),
]


def train(
    data: Annotated[
        str | None,
        Parameter(
            help="digits (the default), a folder of images, parquet files, torch/cifar10, hfds/..."
        ),
    ] = None,
    /,
    *,
    recipe: Recipe = (),
    print_config: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Print what would run, derived values included, as YAML for -c, and stop.",
        ),
    ] = False,
    flags: Annotated[Flags, Parameter(name="*")] = Flags(),  # noqa: B008 - frozen
    json: Json = False,
) -> int | None:
    """Train a classifier; without arguments, on handwritten digits.

    Keeps its weights, metrics and curves in a run folder. What is not said follows from the data
    and the device. --compile=false, and its like, takes back what a recipe says.
    """
    since = time.monotonic()  # what is imported from here on takes seconds
    from cvt.training.defaults import read_layers, said

    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    layer = flags.layer() if data is None else {**flags.layer(), "data": data}
    try:
        asked = read_layers(recipe, said(layer, "the flags"))
        if print_config:
            from cvt.training.setup import preview

            config = preview(asked)
            print(config if is_main else "", end="")
            return 0
    except UserError as error:
        error.is_told_elsewhere = not is_main
        raise
    from cvt.runtime import Interrupted
    from cvt.training.loop import train_as_asked

    try:
        result = train_as_asked(asked, not json, lambda: time.monotonic() - since)
    except Interrupted as stopped:
        if is_main:
            print(f"cvt: {stopped}", file=sys.stderr)
        return 130
    if json and is_main:
        print_json(result.to_dict())
    return 1 if result.bad else 0
