"""The states that a run goes on from: folders under `checkpoints/`, the newest of them whole.

A folder appears under its name only once it is complete, and says in `state.json` what it holds:
the plain facts, where each tensor lies, and the digests of the files of tensors. Nothing is read
that this does not name, and no pickle but torch's form of a single tensor, by `weights_only`.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Generator, Mapping
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
from cvt.files import cannot_write, read_small
from cvt.plain import MOST_TEXT, from_plain, read_json
from cvt.train.contents import (
    Reader,
    StoredTensor,
    TensorsOnly,
    check_contents,
    is_file_name,
    list_contents,
)
from cvt.train.run_folder import CHECKPOINTS_FOLDER
from cvt.train.world import World, is_lost_peer

_FACTS = "state.json"
_UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
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


@dataclass(frozen=True, kw_only=True)
class _State:
    """What `state.json` says."""

    facts: dict[str, Any]
    contents: dict[str, StoredTensor]
    digests: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What the facts say of the tensors."""

    has_moments: bool
    scaler: dict[str, int | float] | None = None


_KEPT = ("has_moments", "scaler")


class _Writer(dcp.FileSystemWriter):
    """torch's writer, but it says what went wrong beneath it: torch's format hides that."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Writes this process's files.

        Raises:
            OSError: The disk is full or the place not writable.
            KeyboardInterrupt: Somebody asked for the end.
        """
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise _root(error) from error

    def finish(self, metadata: Any, results: Any) -> None:
        """Writes what was written where, and says so in `metadata`: torch 2.11 does in a copy."""
        super().finish(metadata, results)
        metadata.storage_data = {each.index: each.storage_data for part in results for each in part}


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
    path = world.on_main(lambda: _make_room(run / CHECKPOINTS_FOLDER))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _single_process_allowed():
            contents = list_contents(dcp.save(state, storage_writer=_Writer(temporary)))
    except (OSError, RuntimeError, dcp.CheckpointException) as error:
        cause = _cause(error)
        if is_lost_peer(cause) or isinstance(cause, KeyboardInterrupt):
            raise cause from None
        shutil.rmtree(temporary, ignore_errors=True)
        wrapped = cause if isinstance(cause, OSError) else OSError(_first_line(cause))
        with world.alike():
            raise cannot_write(path, wrapped) from error
    scaler = tensors.scaler.state_dict() if tensors.scaler else None
    facts = {**facts, "scaler": scaler, "has_moments": bool(tensors.optimizer.state)}
    world.on_main(lambda: _finish(temporary, path, facts, contents, keep))


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
    """Returns the plain data that a checkpoint was saved with.

    Raises:
        UserError: The checkpoint is none, or not of this version.
    """
    return _read(checkpoint).facts


def load_tensors(checkpoint: Path, tensors: Tensors) -> None:
    """Puts a checkpoint's tensors in place; the processes may be others than those that saved it.

    Raises:
        UserError: They do not fit, or are damaged.
    """
    stored = _read(checkpoint)
    facts = from_plain(_Kept, {key: stored.facts.get(key) for key in _KEPT}, f"{checkpoint}")
    state = _state(tensors, facts.has_moments)
    try:
        with _single_process_allowed():
            reader = Reader(checkpoint, stored.contents)
            dcp.load(state, storage_reader=reader, planner=TensorsOnly())
    except _UNREADABLE as error:
        cause = _cause(error)
        if is_lost_peer(cause) or isinstance(cause, KeyboardInterrupt):
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
        _put_back(tensors.scaler, facts.scaler, checkpoint)


def _put_back(scaler: torch.amp.GradScaler, stored: Mapping[str, float] | None, what: Path) -> None:
    usual = scaler.state_dict()
    given = dict(stored or {})
    if {name: type(each) for name, each in given.items()} != {
        name: type(each) for name, each in usual.items()
    }:
        raise UserError(f"Got no state of fp16's loss scaling in {what}; train again.")
    scaler.load_state_dict(given)


def _state(tensors: Tensors, has_moments: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"model": get_model_state_dict(tensors.model)}
    if has_moments:
        state["moments"] = get_optimizer_state_dict(tensors.model, tensors.optimizer)["state"]
    if tensors.ema is not None:
        state["ema"] = get_model_state_dict(tensors.ema)
    return state


def _saved(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    found = (run / CHECKPOINTS_FOLDER).glob(_PATTERN)
    return sorted(each for each in found if each.is_dir() and not each.is_symlink())


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


def _finish(
    temporary: Path, path: Path, facts: dict[str, Any], contents: dict[str, Any], keep: int
) -> None:
    try:
        files = sorted(each for each in temporary.iterdir() if is_file_name(each.name))
        digests = {file.name: _digest(file) for file in files}
        stated = {"facts": facts, "contents": contents, "digests": digests}
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
    """Whether a folder is as it was written; what it says may still be of no use."""
    try:
        stated = _stated(folder)
        digest = stated.pop("digest")
        digests = stated["digests"].items()
        return digest == _digest_of(stated) and all(
            Path(name).name != name  # no name of a file: of that `_read` will tell
            or ((folder / name).is_file() and _digest(folder / name) == digest)
            for name, digest in digests
        )
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _read(folder: Path) -> _State:
    """Reads what a checkpoint says of itself, and makes sure that it can be.

    Raises:
        UserError: It cannot.
    """
    stated = _stated(folder)
    stated.pop("digest", None)
    if "contents" not in stated:
        raise UserError(
            f"Cannot resume from {folder}: it was written by an earlier version, which listed the "
            "contents in a pickle, and none is read; start anew from its weights by --weights."
        )
    state = from_plain(_State, stated, str(folder / _FACTS))
    for name in state.digests:
        file = folder / name
        if not is_file_name(name) or file.is_symlink() or not file.is_file():
            raise UserError(
                f"Cannot resume from {folder}: it says that {name!r} is a file of tensors in it, "
                "which is not so; train again."
            )
    check_contents(state.contents, folder, state.digests)
    return state


def _stated(folder: Path) -> dict[str, Any]:
    file = folder / _FACTS
    stated = read_json(read_small(file, MOST_TEXT), str(file))
    if not isinstance(stated, dict):
        raise UserError(f"Got no facts of a checkpoint in {file}; train again.")
    return stated


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
    """Returns what torch wrapped: an interruption, or the system's own error, if there is one."""
    if not isinstance(error, dcp.CheckpointException):
        return _root(error)
    causes = [_root(cause) for cause, _ in error.failures.values()]
    for kind in (KeyboardInterrupt, OSError):
        found = next((each for each in causes if isinstance(each, kind)), None)
        if found is not None:
            return found
    return causes[0]


def _root(error: BaseException) -> BaseException:
    """Returns the interruption or the system's error that led to this one, if one did."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError | KeyboardInterrupt):
            return each
        each = each.__cause__ or each.__context__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
