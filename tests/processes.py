"""Functions run in several processes that train together, as torchrun would start them.

Importing torch and timm takes seconds, so one server imports them once and forks each process
from there, before any of torch's threads exist.
"""

import faulthandler
import gc
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import distributed as dist

Task = tuple[str, str, bytes]

# With what their functions import when called.
_PRELOADED = [
    "cvt.training.loop",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "pytest",
]


def in_processes(
    count: int,
    function: Callable[..., Any],
    *args: Any,
    dies: Collection[int] = (),
    **options: Any,
) -> list[Any]:
    """Returns what a function, of a test's module for example, returned in each process.

    Args:
        dies: Ranks that are to be killed (SIGKILL); None stands for what they did not return.
        options: `timeout` and more variables for the processes, as `started` takes them.

    Raises:
        AssertionError: One of them raised something, hung, or ended in another way.
    """
    with started(count, function, *args, **options) as processes:
        results = processes.results()
    codes = processes.codes
    expected = [-signal.SIGKILL if rank in dies else 0 for rank in range(count)]
    assert codes == expected, f"a process hung, or ended in another way: {codes}"
    return results


@contextmanager
def started(
    count: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 120,
    **environment: str,
) -> Generator["Processes"]:
    """Starts a function in several processes; at the end those that are left are killed.

    They find each other through a store that this process keeps, as torchrun's agent does.

    Args:
        timeout: Seconds after which they are taken to hang.
        environment: More variables for the processes.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **environment,
    }
    task = (inspect.getfile(function), function.__module__, pickle.dumps((function, args)))
    processes = Processes(
        [_start(rank, shared, task, timeout) for rank in range(count)], time.monotonic() + timeout
    )
    try:
        yield processes
    finally:
        processes.end()


class Processes:
    """Processes at work, by rank."""

    def __init__(self, pairs: list[tuple[Any, Connection]], end: float) -> None:
        self._pairs = pairs
        self._end = end
        self.pids = [process.pid for process, _ in pairs]
        self.codes: list[int | None] = []

    def results(self) -> list[Any]:
        """Waits for all of them; None stands for what one of them did not return.

        Raises:
            AssertionError: One of them raised something.
        """
        messages = self._messages()
        for process, _ in self._pairs:
            process.join(10)
        self.codes = [process.exitcode for process, _ in self._pairs]
        failures = [text for is_well, text in messages.values() if not is_well]
        assert not failures, "\n".join(failures)
        return [messages[rank][1] if rank in messages else None for rank in range(len(self._pairs))]

    def end(self) -> None:
        """Kills those that are left."""
        for process, connection in self._pairs:
            process.kill()
            process.join()
            process.close()
            connection.close()

    def _messages(self) -> dict[int, tuple[bool, Any]]:
        """What they sent, by rank; those that ended or hung without a word are left out."""
        messages: dict[int, tuple[bool, Any]] = {}
        open_ones = {connection: rank for rank, (_, connection) in enumerate(self._pairs)}
        while open_ones:
            ready = wait(list(open_ones), max(self._end - time.monotonic(), 0))
            if not ready:
                break
            for connection in ready:
                rank = open_ones.pop(connection)
                try:
                    messages[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    continue
        return messages


def _start(rank: int, shared: dict[str, str], task: Task, timeout: float) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    process = context.Process(target=_work, args=(theirs, environment, task, timeout))
    process.start()
    theirs.close()
    return process, ours


def _work(connection: Connection, environment: dict[str, str], task: Task, timeout: float) -> None:
    faulthandler.dump_traceback_later(0.9 * timeout)  # where it hangs
    multiprocessing.set_start_method("fork", force=True)  # as in a process that torchrun started
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # Python 3.12 and newer warn about any fork of a process with threads, which torch has.
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
    try:
        function, args = _unpacked(task)
        message = pickle.dumps((True, function(*args)))
    except BaseException:
        text = f"process {environment['RANK']}:\n{traceback.format_exc()}"
        message = pickle.dumps((False, text))
    connection.send_bytes(message)
    connection.close()
    gc.freeze()  # what the server imported is not worth taking apart at the end


def _unpacked(task: Task) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Imports the function's module from its file: pytest may have put it on no path."""
    file, name, packed = task
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return pickle.loads(packed)
