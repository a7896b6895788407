"""The states that a run goes on from: folders under `checkpoints/`, the newest of them whole.

A folder appears under its name only once it is complete, and says in `state.json` what it holds:
the plain facts, where each tensor lies, and the digests of the files of tensors. Nothing is read
that this does not name, and no pickle but torch's form of a single tensor, by `weights_only`.
"""

import hashlib
import json
import math
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from cvt.data import DataSplits
from cvt.errors import UserError, first_line
from cvt.files import cannot_write, read_small
from cvt.plain import MOST_TEXT, Range, from_others, from_plain, read_json, to_plain
from cvt.runtime import World, is_lost_peer, software
from cvt.training.run_folder import CHECKPOINTS_FOLDER, Progress

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


def save_state(
    run: Path, facts: dict[str, Any], tensors: Tensors, *, keep: int, world: World
) -> None:
    """Writes a checkpoint beside its place, renames it, and drops the oldest ones.

    Every process calls it; with FSDP each writes its shares.

    Args:
        facts: Plain data for JSON: config, progress and what else `read_facts` is to return.
        keep: How many checkpoints may stay.
    """
    state = _state(tensors, has_moments=bool(tensors.optimizer.state))
    path = world.on_main(lambda: _make_room(run / CHECKPOINTS_FOLDER))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _single_process_allowed():
            contents = _list_contents(dcp.save(state, storage_writer=_Writer(temporary)))
    except (OSError, RuntimeError, dcp.CheckpointException) as error:
        cause = _cause(error)
        shutil.rmtree(temporary, ignore_errors=True)
        wrapped = cause if isinstance(cause, OSError) else OSError(first_line(cause))
        with world.alike():
            raise cannot_write(path, wrapped) from error
    scaler = tensors.scaler.state_dict() if tensors.scaler else None
    facts = {**facts, "scaler": scaler, "has_moments": bool(tensors.optimizer.state)}
    world.on_main(lambda: _finish(temporary, path, facts, contents, keep))


def _state(tensors: Tensors, has_moments: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"model": get_model_state_dict(tensors.model)}
    if has_moments:
        found: Any = get_optimizer_state_dict(tensors.model, tensors.optimizer)["state"]
        # Muon also notes which parameters it orthogonalises, and knows that again by itself.
        state["moments"] = {
            name: {key: value for key, value in each.items() if isinstance(value, torch.Tensor)}
            for name, each in found.items()
        }
    if tensors.ema is not None:
        state["ema"] = get_model_state_dict(tensors.ema)
    return state


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
    temporary: Path,
    path: Path,
    facts: dict[str, Any],
    contents: "dict[str, StoredTensor]",
    keep: int,
) -> None:
    try:
        files = sorted(each for each in temporary.iterdir() if _FILE.fullmatch(each.name))
        digests = {file.name: _digest(file) for file in files}
        stated = to_plain(_State(facts=facts, contents=contents, digests=digests))
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


def has_checkpoint(run: Path) -> bool:
    """Whether a folder holds checkpoints, whole or not."""
    return bool(_saved(run))


def newest(run: Path) -> Path:
    """Returns the newest checkpoint that is whole; damaged ones are passed over."""
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


def _saved(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    found = (run / CHECKPOINTS_FOLDER).glob(_PATTERN)
    return sorted(each for each in found if each.is_dir() and not each.is_symlink())


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


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Returns the plain data that a checkpoint was saved with."""
    return _read(checkpoint).facts


def load_tensors(checkpoint: Path, tensors: Tensors) -> None:
    """Puts a checkpoint's tensors in place; other processes may have saved it."""
    stored = _read(checkpoint)
    facts = from_others(_Kept, stored.facts, str(checkpoint))
    state = _state(tensors, facts.has_moments)
    try:
        with _single_process_allowed():
            reader = _Reader(checkpoint, stored.contents)
            dcp.load(state, storage_reader=reader, planner=_TensorsOnly())
    except _UNREADABLE as error:
        raise UserError(
            f"Cannot resume from {checkpoint}: its tensors do not fit this model "
            f"({first_line(_cause(error))}); train again."
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
        given, usual = facts.scaler or {}, tensors.scaler.state_dict()
        if {(name, type(each)) for name, each in given.items()} != {
            (name, type(each)) for name, each in usual.items()
        }:
            raise UserError(f"Got no state of fp16's loss scaling in {checkpoint}; train again.")
        tensors.scaler.load_state_dict(given)


# --- What a checkpoint's files hold, listed in JSON, and torch's reading of tensors by that list.
#
# torch keeps a list of its own, `.metadata`, for its own tools. It is a pickle, so it is never read
# here: a run folder may come from a stranger, and what is in it must not run as code.

_FILE = re.compile(r"__[0-9]{1,6}_[0-9]{1,6}\.distcp")
_PACKED = 65536  # what torch's format may take beyond a tensor's own bytes
_MOST_SIDES = 16

_Number = Annotated[int, Range(0, 2**50)]


@dataclass(frozen=True, kw_only=True)
class StoredChunk:
    """A part of a tensor, and where it lies.

    Args:
        offsets: Where it begins in the tensor.
        sizes: Its own shape.
        file: Name of the file, in the checkpoint's folder.
        start: Its first byte there.
        length: Its bytes, in the format of `torch.save`.
    """

    offsets: tuple[_Number, ...]
    sizes: tuple[_Number, ...]
    file: str
    start: _Number
    length: _Number


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of a checkpoint; its chunks make up all of it."""

    dtype: Literal[
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
        "bool",
    ]  # fmt: skip
    shape: tuple[_Number, ...]
    chunks: tuple[StoredChunk, ...]


def _list_contents(metadata: Metadata) -> dict[str, StoredTensor]:
    """Returns what torch says that it has written."""
    contents = {}
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata), f"{name} is no tensor"
        chunks = []
        for chunk in stored.chunks:
            where = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            chunks.append(
                StoredChunk(
                    offsets=tuple(chunk.offsets),
                    sizes=tuple(chunk.sizes),
                    file=where.relative_path,
                    start=where.offset,
                    length=where.length,
                )
            )
        dtype: Any = str(stored.properties.dtype).removeprefix("torch.")
        shape, chunks = tuple(stored.size), tuple(chunks)
        contents[name] = StoredTensor(dtype=dtype, shape=shape, chunks=chunks)
    return contents


def _fits(tensor: StoredTensor, sizes: Mapping[str, int]) -> bool:
    """Whether a tensor lies within its files, of these sizes, and is all there."""
    itemsize = getattr(torch, tensor.dtype).itemsize
    for chunk in tensor.chunks:
        least = math.prod(chunk.sizes) * itemsize
        sides = zip(chunk.offsets, chunk.sizes, tensor.shape, strict=False)
        is_inside = (
            len(chunk.offsets) == len(chunk.sizes) == len(tensor.shape) <= _MOST_SIDES
            and all(offset + size <= side for offset, size, side in sides)
            and least <= chunk.length <= least + _PACKED
            and chunk.start + chunk.length <= sizes[chunk.file]
        )
        if not is_inside:
            return False
    starts = {chunk.offsets for chunk in tensor.chunks}
    whole = sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
    return len(starts) == len(tensor.chunks) and whole == math.prod(tensor.shape)


class _Reader(FileSystemReader):
    """torch's reader, by our list, once it was found right, in place of its own."""

    def __init__(self, folder: Path, contents: Mapping[str, StoredTensor]) -> None:
        super().__init__(folder)
        self._contents = contents

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the list in torch's form."""
        tensors, places = {}, {}
        for name, tensor in self._contents.items():
            tensors[name] = TensorStorageMetadata(
                properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
                size=torch.Size(tensor.shape),
                chunks=[
                    ChunkStorageMetadata(torch.Size(each.offsets), torch.Size(each.sizes))
                    for each in tensor.chunks
                ],
            )
            for each in tensor.chunks:
                place = _StorageInfo(each.file, each.start, each.length)
                places[MetadataIndex(name, each.offsets)] = place
        return Metadata(
            state_dict_metadata=tensors,
            storage_data=places,
            storage_meta=StorageMeta(load_id=self.load_id),
        )

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        """Returns the bytes of a chunk, which torch then reads with `weights_only`.

        They are stored as they are: what is compressed, or no archive, is none of ours.
        """
        file.seek(sinfo.offset)
        content = BytesIO(file.read(sinfo.length))
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
        if any(each.file_size != each.compress_size or each.compress_type for each in members):
            raise ValueError(f"{sinfo.relative_path} holds something compressed")
        content.seek(0)
        return content


class _TensorsOnly(DefaultLoadPlanner):
    """torch's plan of what to load, less its way of unpickling whatever is no tensor."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Refuses it."""
        raise ValueError(f"{read_item.dest_index.fqn} is no tensor")


# --- What `state.json` says, and whether it is so.


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


def _read(folder: Path) -> _State:
    """Reads what a checkpoint says of itself, and makes sure that its folder agrees."""
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
        if not _FILE.fullmatch(name) or file.is_symlink() or not file.is_file():
            raise UserError(
                f"Cannot resume from {folder}: it says that {name!r} is a file of tensors in it, "
                "which is not so; train again."
            )
    named = {chunk.file for tensor in state.contents.values() for chunk in tensor.chunks}
    if named != set(state.digests):
        odd = min(named ^ set(state.digests))
        raise UserError(f"Got {odd!r} beside or without its tensors in {folder}; train again.")
    sizes = {name: (folder / name).stat().st_size for name in state.digests}
    for name, tensor in state.contents.items():
        if not _fits(tensor, sizes):
            raise UserError(f"Got no place for the tensor {name!r} in {folder}; train again.")
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


# --- What torch hides: why a file could not be written.


class _Writer(dcp.FileSystemWriter):
    """torch's writer, but it says what went wrong beneath it: torch's format hides that."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Writes this process's files; raises the system's error, or the interruption, itself."""
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise _root(error) from error

    def finish(self, metadata: Any, results: Any) -> None:
        """Writes what was written where, and says so in `metadata`: torch 2.11 does in a copy."""
        super().finish(metadata, results)
        metadata.storage_data = {each.index: each.storage_data for part in results for each in part}


@contextmanager
def _single_process_allowed() -> Generator[None]:
    """torch warns where there is no process group, which is how a run on one device is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _cause(error: BaseException) -> BaseException:
    """Returns what torch wrapped, the system's own error if there is one.

    An interruption, and a process that was lost, are raised instead.
    """
    causes = [_root(error)]
    if isinstance(error, dcp.CheckpointException):
        causes = [_root(cause) for cause, _ in error.failures.values()]
    kinds = (KeyboardInterrupt, OSError)
    found = min(causes, key=lambda each: [not isinstance(each, kind) for kind in kinds])
    if is_lost_peer(found) or isinstance(found, KeyboardInterrupt):
        raise found from None
    return found


def _root(error: BaseException) -> BaseException:
    """Returns the interruption or the system's error that led to this one, if one did."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError | KeyboardInterrupt):
            return each
        each = each.__cause__ or each.__context__
    return error


# --- Whether a run that goes on is still the same run: its config, its data, its software.


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run's bits depend on besides its config.

    Args:
        data: For each split its number of images and a digest of their names and labels.
        software: Versions of this library and of those that it computes with.
        chunks: How many chunks a batch is dealt out to: processes times accumulation steps.
        teacher: Name and a digest of the network that is learned from; empty where there is none.
    """

    data: dict[str, tuple[int, str]]
    software: dict[str, str]
    chunks: Annotated[int, Range(1, 2**20)]
    teacher: tuple[str, ...] = ()

    @classmethod
    def of(cls, splits: DataSplits, chunks: int, teacher: Sequence[str] = ()) -> "Identity":
        """Looks at the data and the software at hand."""
        named = {"training": splits.train, "validation": splits.val, "test": splits.test}
        return cls(
            data={name: (len(each), each.fingerprint()) for name, each in named.items() if each},
            software={name: found for name, found in software().items() if name != "Python"},
            chunks=chunks,
            teacher=tuple(teacher),
        )

    def check(self, now: "Identity") -> None:
        """Makes sure that data, teacher and software are those that this run was started with."""
        changes = []
        for name, (count, digest) in self.data.items():
            new_count, new_digest = now.data.get(name, (0, ""))
            if count != new_count:
                changes.append(f"the {name} split has {new_count} images instead of {count}")
            elif digest != new_digest:
                changes.append(f"names or labels of the {name} images differ")
        if self.teacher != now.teacher:
            old, new = (each.teacher[0] if each.teacher else "none" for each in (self, now))
            other = f"{new} instead of {old}" if new != old else f"{old} with other weights"
            changes.append(f"the teacher is {other}")
        for name, old in self.software.items():
            if now.software.get(name) != old:
                changes.append(f"{name} is {now.software.get(name)} instead of {old}")
        if changes:
            raise UserError(
                f"The run to resume would not be the same: {', '.join(changes)}; put that back, "
                "or go on all the same with --force."
            )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a checkpoint says of its run; `TrainConfig` and `Record` read their parts."""

    config: dict[str, Any]
    identity: Identity
    record: dict[str, Any]
    progress: Progress


def read_run_facts(checkpoint: Path) -> RunFacts:
    """Reads what a checkpoint says of its run."""
    return from_others(RunFacts, read_facts(checkpoint), f"the facts in {checkpoint}")
