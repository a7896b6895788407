"""`cvt train [DATA]`."""

import os
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from cvt.cli.flags import Json
from cvt.cli.output import print_json
from cvt.errors import UserError
from cvt.training.config import GROUPS, TrainConfig


class Flags(TrainConfig):
    """A config made of the command line alone, which remembers the fields that it named."""

    given: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        object.__setattr__(self, "given", given)

    def layer(self) -> dict[str, Any]:
        """Returns what was said, defaults included where they were said, as plain data."""
        said = {name: value for name, value in self.to_dict().items() if name in self.given}
        for name in set(GROUPS) & set(said):
            said[name] = {key: value for key, value in said[name].items() if value is not None}
        return said


def train(
    data: Annotated[
        str | None,
        Parameter(
            help="digits (the default), a folder of images, parquet files, torch/cifar10, hfds/..."
        ),
    ] = None,
    /,
    *,
    config: Annotated[
        tuple[str, ...],
        Parameter(
            name=["--config", "-c"],
            negative="",
            show_default=False,
            help="A recipe's name or a YAML file; later ones, and then flags, override earlier.",
        ),
    ] = (),
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

    Keeps its weights, metrics and curves in a run folder.
    """
    try:
        chosen = _chosen(config, flags.layer() if data is None else {**flags.layer(), "data": data})
        if print_config:
            _print(chosen)
            return 0
    except UserError as error:
        error.is_told_elsewhere = not _is_main()
        raise
    return _run(chosen, json)


def _chosen(files: tuple[str, ...], layer: dict[str, Any]) -> TrainConfig:
    from cvt.training.defaults import read_layers

    return TrainConfig.from_dict(read_layers(files, layer))


def _print(config: TrainConfig) -> None:
    from cvt.training.setup import preview

    text = preview(config)
    if _is_main():
        print(text, end="")


def _run(config: TrainConfig, json: bool) -> int:
    from cvt.runtime import Interrupted
    from cvt.training.loop import train as run

    try:
        result = run(config, progress=not json)
    except Interrupted as stopped:
        if _is_main():
            print(f"cvt: {stopped}", file=sys.stderr)
        return 130
    if json and _is_main():
        print_json(result.to_dict())
    return 1 if result.bad else 0


def _is_main() -> bool:
    """Whether this is the one that speaks of the processes that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
