"""`cvt eval CHECKPOINT DATA`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cvt.cli.bar import image_bar
from cvt.cli.flags import BatchSize, DataDir, Device, Download, Json, NumWorkers
from cvt.cli.scores import PicturePlaces, report
from cvt.errors import UserError

BenchmarkFlag = Annotated[
    Literal["val", "real", "v2", "a", "r", "c"] | None,
    Parameter(
        help="DATA is the folder of one of ImageNet's sets, measured by its own protocol: val, "
        "real (val with ReaL labels), v2, a, r or c."
    ),
]
SplitFlag = Annotated[
    str | None,
    Parameter(
        help="train, val, test or all; by default test, or else val, if the data has such a split, "
        "what the run had held out of its own data, and all of any other."
    ),
]
OutFlag = Annotated[
    Path | None,
    Parameter(
        help="Folder for confusion.png and reliability.png, by default the run's or the "
        "checkpoint's; if there are such, -2 and on."
    ),
]
ConfusionFlag = Annotated[
    Path | None, Parameter(help="File for the picture of the confusion matrix, to be replaced.")
]
ReliabilityFlag = Annotated[
    Path | None, Parameter(help="File for the picture of the calibration, to be replaced.")
]


def evaluate(
    checkpoint: str,
    data: str = "digits",
    /,
    *,
    benchmark: BenchmarkFlag = None,
    split: SplitFlag = None,
    data_dir: DataDir = None,
    download: Download = False,
    out: OutFlag = None,
    confusion: ConfusionFlag = None,
    reliability: ReliabilityFlag = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 0,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Measure a checkpoint on labelled images: top-1, top-5, each class, loss, calibration.

    Parameters
    ----------
    checkpoint
        A run folder, a checkpoint file, a hub id or the name of published weights.
    data
        As for `cvt train`; with --benchmark, a folder.
    """
    from cvt.evaluate import evaluate as run
    from cvt.evaluate import evaluate_benchmark
    from cvt.train.world import join_world

    if benchmark and (split or data_dir or download):
        raise UserError(
            "Got --benchmark with --split, --data-dir or --download, which it does not read; name "
            "the benchmark's folder alone."
        )
    measure = partial(run, split=split, data_dir=data_dir, download=download)
    if benchmark:
        measure = partial(evaluate_benchmark, benchmark=benchmark)
    with join_world(device) as world, image_bar(world.is_main) as bar:
        result = measure(
            checkpoint,
            data,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            on_start=bar.start,
            on_batch=bar.advance,
        )
    if not world.is_main:
        return 0
    places = PicturePlaces(checkpoint, out, confusion, reliability)
    return report(result, benchmark, places, json)
