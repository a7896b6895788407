"""How long an update takes, measured on a throw-away model before the clock of a budget starts."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from cvt.data import Batch
from cvt.train.config import TrainConfig
from cvt.train.freeze import set_train_mode
from cvt.train.job import Job
from cvt.train.loop import make_update
from cvt.train.setup import prepare
from cvt.train.world import ALONE

WARM_UP = 5
UPDATES = 40
LONGEST_S = 20.0
FEWEST = 3


def seconds_per_update(config: TrainConfig) -> float:
    """Makes updates as a run of this config would, waiting for images included, and times them.

    The mean over up to 40 updates or 20 seconds, after five that are not counted.

    Raises:
        UserError: The model or the data cannot be used.
        NonFinite: The loss or the gradient is not finite.
    """
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        job = prepare(replace(config, out=str(Path(folder) / "run")), ALONE)
        set_train_mode(job.network.model, job.config.freeze)
        batches = _endless(job)
        for chunks in islice(batches, WARM_UP):
            make_update(job, chunks)
        since, made = time.monotonic(), 0
        while made < UPDATES and (made < FEWEST or time.monotonic() - since < LONGEST_S):
            make_update(job, next(batches))
            made += 1
        return (time.monotonic() - since) / made


def _endless(job: Job) -> Iterator[list[Batch]]:
    """Goes through epoch after epoch, in batches of as many chunks as the config says."""
    for epoch in count():
        job.progress.epoch = epoch
        batches = iter(job.train_loader())
        while chunks := list(islice(batches, job.config.accum_steps)):
            yield chunks
