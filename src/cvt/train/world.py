"""The processes that train together, as torchrun starts them; alone, a world of one."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from cvt.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among those that train together.

    Args:
        rank: Its number, from 0, over all machines.
        size: How many there are.
        local_rank: Its number on this machine, which is also that of its GPU.
        is_restarted: Whether torchrun started it in the place of one that was lost.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    is_restarted: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Adds up a tensor over all processes, in place, and returns it."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def from_main(self, value: Any) -> Any:
        """Returns the main process's value in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], T]) -> T:
        """Lets the main process work while the others wait; result or error are everyone's.

        Raises:
            UserError: The main process raised it.
        """
        return self.from_main(self._in_turns(work, (True,)))

    def in_turn(self, work: Callable[[], T]) -> T:
        """Lets the main process work, then the others: what it fetched or made is there for them.

        Raises:
            UserError: One of the processes raised it.
        """
        result = self._in_turns(work, (True, False))
        assert result is not None
        return result

    def _in_turns(self, work: Callable[[], T], turns: Sequence[bool]) -> T | None:
        result, mine = None, None
        for main_works in turns:
            if self.is_main is main_works:
                try:
                    result = work()
                except UserError as error:
                    mine = error
            said = [each for each in self.gather(None if mine is None else str(mine)) if each]
            if said:
                error = mine or UserError(said[0])
                error.is_told_elsewhere = mine is None
                raise error
        return result

    @contextmanager
    def alike(self) -> Generator[None]:
        """Surrounds what goes wrong in all processes of a machine alike: one of them tells it."""
        try:
            yield
        except UserError as error:
            if "is_told_elsewhere" not in vars(error):
                error.is_told_elsewhere = self.local_rank > 0
            raise

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def join_world(device: str = "auto") -> Generator[World]:
    """Joins the processes that torchrun started and leaves them at the end; alone, does nothing.

    GPUs talk through NCCL, CPUs through Gloo. A process group that exists already is used and
    left as it is.

    Raises:
        UserError: The processes do not find each other.
    """
    if dist.is_available() and dist.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
        yield World(dist.get_rank(), dist.get_world_size(), local)
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes do not find each other ({_first_line(error)}); start them all by "
            "torchrun, which sets their addresses."
        ) from error
    try:
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        yield World(dist.get_rank(), dist.get_world_size(), local, restarts > 0)
    finally:
        dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of torch's means that another process no longer answers."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    words = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip().rstrip(".")
