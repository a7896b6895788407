"""`cvt train [DATA]`."""

import sys
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from cvt.cli.flags import Json
from cvt.cli.output import print_json
from cvt.train.config import TrainConfig


def train(
    data: str | None = None,
    /,
    *,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
    json: Json = False,
) -> int | None:
    """Train a classifier and keep its weights, metrics and curves in a run folder.

    Parameters
    ----------
    data
        digits (the default), a folder of images, parquet files, torch/cifar10, hfds/...
    """
    from cvt.train.interrupt import Interrupted
    from cvt.train.loop import train as run

    if data is not None:
        config = replace(config, data=data)
    try:
        result = run(config, progress=not json)
    except Interrupted as stopped:
        print(f"cvt: {stopped}", file=sys.stderr)
        return 130
    if json:
        print_json(result.to_dict())
    return 1 if result.bad else 0
