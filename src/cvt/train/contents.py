"""What a checkpoint's files hold, listed in JSON, and torch's reading of tensors by that list.

torch keeps a list of its own, `.metadata`, for its own tools. It is a pickle, so it is never read
here: a run folder may come from a stranger, and what is in it must not run as code.
"""

import math
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from cvt.errors import UserError
from cvt.plain import Range

_FILE = re.compile(r"__[0-9]{1,6}_[0-9]{1,6}\.distcp")
_PACKED = 65536  # what torch's format may take beyond a tensor's own bytes
_MOST_SIDES = 16

_Number = Annotated[int, Range(0, 2**50)]


@dataclass(frozen=True, kw_only=True)
class Chunk:
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
    chunks: tuple[Chunk, ...]


def list_contents(metadata: Metadata) -> dict[str, Any]:
    """Returns as plain data what torch says that it has written."""
    contents = {}
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata), f"{name} is no tensor"
        chunks = []
        for chunk in stored.chunks:
            where = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            chunks.append(
                Chunk(
                    offsets=tuple(chunk.offsets),
                    sizes=tuple(chunk.sizes),
                    file=where.relative_path,
                    start=where.offset,
                    length=where.length,
                )
            )
        dtype: Any = str(stored.properties.dtype).removeprefix("torch.")
        tensor = StoredTensor(dtype=dtype, shape=tuple(stored.size), chunks=tuple(chunks))
        contents[name] = asdict(tensor)
    return contents


def is_file_name(name: str) -> bool:
    """Whether a file of tensors may be called so."""
    return _FILE.fullmatch(name) is not None


def check_contents(
    contents: Mapping[str, StoredTensor], folder: Path, files: Collection[str]
) -> None:
    """Makes sure that a list and its folder agree, before anything is read by it.

    Args:
        files: The names of the files whose digests are known.

    Raises:
        UserError: Some part of the list cannot be, or points out of the folder or its files.
    """
    sizes = {name: (folder / name).stat().st_size for name in files if is_file_name(name)}
    named = {chunk.file for tensor in contents.values() for chunk in tensor.chunks}
    if named != set(files):
        odd = min(named ^ set(files))
        raise UserError(f"Got {odd!r} beside or without its tensors in {folder}; train again.")
    for name, tensor in contents.items():
        if not _fits(tensor, sizes):
            raise UserError(f"Got no place for the tensor {name!r} in {folder}; train again.")


def _fits(tensor: StoredTensor, sizes: Mapping[str, int]) -> bool:
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


class Reader(FileSystemReader):
    """torch's reader, by our list in place of its own.

    Args:
        folder: The checkpoint.
        contents: What `check_contents` has found right.
    """

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


class TensorsOnly(DefaultLoadPlanner):
    """torch's plan of what to load, less its way of unpickling whatever is no tensor."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Refuses it.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{read_item.dest_index.fqn} is no tensor")
