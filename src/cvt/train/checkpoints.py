"""The states that a run goes on from: folders under `checkpoints/`, the newest of them whole.

A folder appears under its name only once it is complete, and says what it holds by digests.
"""

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from cvt.errors import UserError
from cvt.files import cannot_write
from cvt.train.safe_reader import SafeReader
from cvt.train.world import World, is_lost_peer

FOLDER = "checkpoints"
_FACTS = "state.json"
_UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    pickle.UnpicklingError,
    dcp.CheckpointException,
)
_PATTERN = "[0-9]" * 6


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """What a checkpoint holds of tensors, in place: saved from there, loaded into there.

    Args:
        model: Its parameters and buffers, which are the same in all processes.
        optimizer: Its moments; none before the first update.
        ema: The averaged model, if there is one.
        scaler: The loss scaling of fp16, if there is one; a number, kept with the facts.
    """

    model: nn.Module
    optimizer: Optimizer
    ema: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None


def save_state(
    run: Path, facts: dict[str, Any], tensors: Tensors, *, keep: int, world: World
) -> None:
    """Writes a checkpoint beside its place, renames it, and drops the oldest ones.

    Every process calls it; with FSDP each writes its shares.

    Args:
        facts: Plain data for JSON: config, progress and what else `read_facts` is to return.
        keep: How many checkpoints may stay.

    Raises:
        UserError: The disk is full or the folder not writable; older checkpoints are kept.
    """
    state = _state(tensors, has_moments=bool(tensors.optimizer.state))
    path = world.on_main(lambda: _make_room(run / FOLDER))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _single_process_allowed():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(temporary))
    except (OSError, RuntimeError, dcp.CheckpointException) as error:
        cause = _cause(error)
        if is_lost_peer(cause):
            raise cause from None
        shutil.rmtree(temporary, ignore_errors=True)
        wrapped = cause if isinstance(cause, OSError) else OSError(_first_line(cause))
        with world.alike():
            raise cannot_write(path, wrapped) from error
    scaler = tensors.scaler.state_dict() if tensors.scaler else None
    facts = {**facts, "scaler": scaler, "has_moments": bool(tensors.optimizer.state)}
    world.on_main(lambda: _finish(temporary, path, facts, keep))


def has_checkpoint(run: Path) -> bool:
    """Whether a folder holds checkpoints, whole or not."""
    return bool(_saved(run))


def newest(run: Path) -> Path:
    """Returns the newest checkpoint that is whole; damaged ones are passed over.

    Raises:
        UserError: There is none.
    """
    folders = _saved(run)[::-1]
    for folder in folders:
        if _is_whole(folder):
            return folder
    if folders:
        raise UserError(
            f"Cannot resume {run}: its checkpoints are damaged ({folders[0]} is half written or "
            "was changed); train again."
        )
    raise UserError(f"Cannot resume {run}: there is no checkpoint in it; give the folder of a run.")


def passed_over(run: Path, checkpoint: Path) -> list[Path]:
    """Returns the checkpoints that `newest` found damaged before it came to this one."""
    return [each for each in _saved(run) if each > checkpoint]


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Returns the plain data that a checkpoint was saved with."""
    return json.loads((checkpoint / _FACTS).read_text(encoding="utf-8"))["facts"]


def load_tensors(checkpoint: Path, tensors: Tensors) -> None:
    """Puts a checkpoint's tensors in place; the processes may be others than those that saved it.

    Raises:
        UserError: They do not fit, or are damaged.
    """
    facts = read_facts(checkpoint)
    state = _state(tensors, facts["has_moments"])
    try:
        with _single_process_allowed():
            dcp.load(state, storage_reader=SafeReader(checkpoint))
    except _UNREADABLE as error:
        cause = _cause(error)
        if is_lost_peer(cause):
            raise cause from None
        raise UserError(
            f"Cannot resume from {checkpoint}: its tensors do not fit this model "
            f"({_first_line(cause)}); train again."
        ) from error
    set_model_state_dict(tensors.model, state["model"])
    if "moments" in state:
        # Rates and decays are the config's business; only the moments are the checkpoint's.
        whole = get_optimizer_state_dict(tensors.model, tensors.optimizer)
        whole["state"] = state["moments"]
        set_optimizer_state_dict(tensors.model, tensors.optimizer, whole)
    if tensors.ema is not None:
        set_model_state_dict(tensors.ema, state["ema"])
    if tensors.scaler is not None:
        tensors.scaler.load_state_dict(facts["scaler"])


def _state(tensors: Tensors, has_moments: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"model": get_model_state_dict(tensors.model)}
    if has_moments:
        state["moments"] = get_optimizer_state_dict(tensors.model, tensors.optimizer)["state"]
    if tensors.ema is not None:
        state["ema"] = get_model_state_dict(tensors.ema)
    return state


def _saved(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    return sorted((run / FOLDER).glob(_PATTERN))


def _make_room(folder: Path) -> Path:
    """Returns the next checkpoint's path, with an empty folder beside it to write into."""
    saved = _saved(folder.parent)
    path = folder / f"{int(saved[-1].name) + 1 if saved else 0:06d}"
    try:
        for left_behind in folder.glob(".*.tmp"):
            shutil.rmtree(left_behind)
        path.with_name(f".{path.name}.tmp").mkdir(parents=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def _finish(temporary: Path, path: Path, facts: dict[str, Any], keep: int) -> None:
    try:
        digests = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
        stated = {"facts": facts, "digests": digests}
        with open(temporary / _FACTS, "w", encoding="utf-8") as file:
            json.dump({**stated, "digest": _digest_of(stated)}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
        for old in _saved(path.parent.parent)[:-keep]:
            shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(path, error) from error


def _is_whole(folder: Path) -> bool:
    try:
        stated = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        digest = stated.pop("digest")
        files = stated["digests"].items()
        return digest == _digest_of(stated) and all(
            _digest(folder / name) == digest for name, digest in files
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _digest_of(stated: dict[str, Any]) -> str:
    """Of what JSON makes of it, the same before it is written and after it is read."""
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a renaming last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _single_process_allowed() -> Generator[None]:
    """torch warns where there is no process group, which is how a run on one device is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _cause(error: BaseException) -> BaseException:
    """Returns what torch wrapped, the system's own error if there is one."""
    if not isinstance(error, dcp.CheckpointException):
        return error
    causes = [cause for cause, _ in error.failures.values()]
    return next((each for each in causes if isinstance(each, OSError)), causes[0])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
