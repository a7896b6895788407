"""Training runs for tests: sessions that something happens to, and what two runs differ in."""

import csv
import os
import random
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from cvt.errors import UserError
from cvt.runtime import Interrupted, join_world
from cvt.training.config import TrainConfig
from cvt.training.defaults import DataFacts, derive, said
from cvt.training.loop import train
from cvt.training.report import TrainResult
from cvt.weights.checkpoint import load_checkpoint
from stored import stored_facts, stored_tensors

TINY_MODEL = {
    "embed_dim": [8, 8, 16],
    "depth": [1, 1, 2],
    "num_heads": [1, 1, 2],
    "embed_stride": [2, 2, 1],
}
DIGITS = DataFacts(name="digits", num_images=1259, median_side=8)


def config_of(**settings: Any) -> TrainConfig:
    """A complete config: what the settings leave open is as for digits on a CPU."""
    config = derive(said(settings, "the settings"), DIGITS, torch.device("cpu"))
    return replace(config, device=settings.get("device", "cpu"))


# What the clock and the machine decide.
TIMED = {"images_per_s", "seconds", "data_wait", "memory_mb", "wait_seconds", "pace", "spent"}


@dataclass(frozen=True)
class Event:
    """Something to happen in a process when a function is called for the `call`-th time.

    Args:
        function: Its full name, by which its caller knows it.
        what: The signal that the process gets, or the error that is raised.
        rank: The process; None for all of them.
    """

    function: str
    call: int
    what: int | BaseException = signal.SIGINT
    rank: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a session ended: its result, or the name and the words of what it raised."""

    result: TrainResult | None = None
    error: str = ""
    text: str = ""
    is_told_elsewhere: bool = False


def session(config: dict[str, Any], *events: Event, patches: Mapping[str, Any] = {}) -> Ended:
    """Trains until the end, or until what happens on the way makes an end of it.

    Args:
        patches: What takes the place of what, by full names.
    """
    rank = int(os.environ.get("RANK", 0))
    # A new process begins with generators in a state that nobody knows.
    random.seed()
    np.random.seed()
    torch.seed()
    with ExitStack() as stack:
        stack.enter_context(patch("matplotlib.figure.Figure.savefig"))  # takes half a second
        for name, value in patches.items():
            stack.enter_context(patch(name, value))
        for event in events:
            if event.rank in (None, rank):
                stack.enter_context(_happening(event))
        try:
            return Ended(train(**config, progress=False))
        except (Interrupted, UserError) as error:
            return Ended(None, type(error).__name__, str(error), error.is_told_elsewhere)


def sessions(configs: list[dict[str, Any]]) -> list[Ended]:
    """Several sessions, one after the other."""
    with join_world("cpu"):
        return [session(config) for config in configs]


def differences(one: Path, other: Path) -> list[str]:
    """Names what two runs differ in, to the bit: tensors, facts, products, metrics; not times."""
    return [
        *_unequal("", stored_tensors(one), stored_tensors(other)),
        *_unequal("progress.", *(_untimed(stored_facts(run)["progress"]) for run in (one, other))),
        *_unequal("scaler.", *({"": stored_facts(run)["scaler"]} for run in (one, other))),
        *_unequal("best.", *(_product(run / "best.safetensors") for run in (one, other))),
        *_unequal("last.", *(_product(run / "last.safetensors") for run in (one, other))),
        *_unequal("metrics.", *({"": _metrics(run)} for run in (one, other))),
    ]


def farthest(one: Path, other: Path, prefix: str = "") -> float:
    """Returns the largest difference between stored numbers of two runs, names by a prefix."""
    mine, yours = stored_tensors(one), stored_tensors(other)
    assert mine.keys() == yours.keys()
    names = [name for name in mine if name.startswith(prefix)]
    assert names
    return max((mine[name].double() - yours[name].double()).abs().max().item() for name in names)


def _happening(event: Event):
    module, _, name = event.function.rpartition(".")
    original = getattr(__import__(module, fromlist=[name]), name)
    calls = []

    def called(*args, **kwargs):
        calls.append(name)
        if len(calls) == event.call:
            if isinstance(event.what, BaseException):
                raise event.what
            os.kill(os.getpid(), event.what)
        return original(*args, **kwargs)

    return patch(event.function, called)


def _unequal(prefix: str, mine: dict[str, Any], yours: dict[str, Any]) -> list[str]:
    return [
        prefix + name
        for name in sorted(mine.keys() | yours.keys())
        if name not in mine or name not in yours or not _is_same(mine[name], yours[name])
    ]


def _is_same(mine: Any, yours: Any) -> bool:
    if isinstance(mine, torch.Tensor):
        return mine.dtype == yours.dtype and torch.equal(mine, yours)
    return mine == yours


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _untimed(item) for name, item in value.items() if name not in TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def _product(path: Path) -> dict[str, Any]:
    tensors, record = load_checkpoint(path)
    return {**tensors, "record": record}


def _metrics(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [_untimed(row) for row in csv.DictReader(file)]
