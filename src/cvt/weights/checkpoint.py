"""Our own format: one safetensors file whose JSON metadata says all that is needed to use it."""

import hashlib
import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cvt.errors import UserError, did_you_mean
from cvt.files import atomic_path
from cvt.plain import read_json
from cvt.weights.layouts import StateDict
from cvt.weights.record import Record

METADATA_KEY = "cvt"
_OS_ERROR = re.compile(r"os error (\d+)")


def save_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], record: Record) -> None:
    """Writes a checkpoint; a file that was there is replaced whole or not at all."""
    metadata = {METADATA_KEY: json.dumps(record.to_dict()), "format": "pt"}
    write_safetensors(path, state_dict, metadata)


def load_checkpoint(path: str | Path) -> tuple[StateDict, Record]:
    """Reads tensors (on the CPU) and record of a checkpoint that `save_checkpoint` wrote."""
    state_dict, metadata = read_safetensors(path)
    return state_dict, record_of(metadata, source=str(path))


def record_of(metadata: Mapping[str, str], *, source: str) -> Record:
    """Reads the record in a safetensors file's metadata."""
    if METADATA_KEY not in metadata:
        raise UserError(
            f"{source} has no record of its model in it, expected a checkpoint of this library; "
            "make one with `cvt convert`."
        )
    content = read_json(metadata[METADATA_KEY], f"the record in {source}")
    try:
        return Record.from_dict(content)
    except UserError as error:
        raise UserError(f"{source} cannot be used. {error}") from error


def read_safetensors(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Reads any safetensors file's tensors, on the CPU, and its metadata."""
    with _open(Path(path)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write_safetensors(
    path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes tensors, contiguous and from the CPU, and metadata, all or nothing."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            number = _OS_ERROR.search(str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code)) from error


@contextmanager
def _open(path: Path) -> Generator[Any]:
    if not os.path.isfile(path):
        raise no_such_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise UserError(
            f"{path} is truncated or no safetensors file ({error}); copy or download it again."
        ) from error


def no_such_file(path: Path) -> UserError:
    """Says that a file is missing, and names the nearest one in its folder."""
    try:
        siblings = [each.name for each in path.parent.glob("[!.]*")]
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        siblings = []
    hint = did_you_mean(path.name, siblings)
    return UserError(f"There is no file {path}, expected a checkpoint.{hint}")


def digest_of(tensors: Mapping[str, Tensor], start: str = "", *, with_shapes: bool = True) -> str:
    """Returns a digest of tensors by their names, by which weights are known again.

    Args:
        start: What it covers besides.
        with_shapes: Whether it covers dtypes and shapes too, and not names and content alone.
    """
    found = hashlib.sha256(start.encode())
    for name, tensor in sorted(tensors.items()):
        label = f"{name} {tensor.dtype} {tuple(tensor.shape)} " if with_shapes else name
        found.update(label.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
