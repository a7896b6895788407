"""Processes that load: how they start, stop in silence, and are missed when they die."""

import re
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from cvt.data.batch import Batch
from cvt.data.samples import Samples
from cvt.errors import UserError

# How torch says it, in its signal handler and where it waits for a batch.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?P<how>[^.\n]*)")


class BatchLoader:
    """Yields batches that are prepared by other processes, if wanted, and says if one died.

    Args:
        samples: Turns members of batches into batches.
        batches: What each batch is made of, in order.
        num_workers: Processes that load; 0 loads in this one.
    """

    def __init__(
        self, samples: Samples, batches: Iterable[Sequence[Any]], num_workers: int
    ) -> None:
        self.batches = batches
        self._loader = DataLoader(
            cast("Dataset", samples),
            batch_sampler=cast("Any", batches),
            collate_fn=samples.collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_prepare_worker,
            # The loader draws a number when iteration begins: not from the global generator.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        with dead_workers_explained():
            yield from self._loader


@contextmanager
def dead_workers_explained() -> Generator[None]:
    """Turns torch's word for a loading process that died into one sentence.

    torch raises from a signal handler, so wherever the main process happens to be: put the whole
    loop over a loader into this block.

    Raises:
        UserError: In place of that RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        death = _DEATH.search(str(error))
        if death is None:
            raise
        raise UserError(
            f"A loading process died ({death['how'].strip()}), most often for lack of memory; "
            "use fewer --num-workers and go on with --resume."
        ) from error


def _prepare_worker(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the main one ends its workers itself.

    If it stops while a batch is being handed over, the worker's end of the pipe breaks: nothing
    that the user should read about. Errors in loading travel another way and are still reported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_all_but_broken_pipes


def _report_all_but_broken_pipes(kind: Any, error: BaseException, trace: Any) -> None:
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
