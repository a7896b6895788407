"""Processes that load: how they start, stop in silence, and are missed when they die."""

import re
import signal
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from cvt.data.batch import Batch
from cvt.data.samples import Samples
from cvt.errors import UserError

# How torch says it, in its signal handler and where it waits for a batch.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is )?(?P<how>[^.\n]*)")
_DIED = (
    "A loading process died ({}), most often for lack of memory; use fewer --num-workers; a "
    "training goes on with --resume."
)

# What the main process sees of one that dies while it hands a batch over, before torch notices;
# the same errors from within loading begin with other words.
_CUT_OFF = (ConnectionError, EOFError, FileNotFoundError)
_SENT_ON = "Caught "


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
        with _as_many_as_wanted():
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
            with _as_many_as_wanted():
                iterator = iter(self._loader)
            try:
                yield from iterator
            except _CUT_OFF as error:
                if self._loader.num_workers == 0 or str(error).startswith(_SENT_ON):
                    raise
                raise UserError(_DIED.format("in the middle of a batch")) from error
            finally:
                _end_workers(iterator)


@contextmanager
def _as_many_as_wanted() -> Generator[None]:
    """Silences torch where it warns of more workers than cores: their number is the user's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def _end_workers(iterator: Any) -> None:
    """Ends them now, whoever still holds the iterator: a traceback does.

    Until torch has forgotten them, every signal that a process ended can raise an error.
    """
    end = getattr(iterator, "_shutdown_workers", None)
    if end is None:
        return
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such signal either
        return end()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        end()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        raise UserError(_DIED.format(death["how"].strip())) from error


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
