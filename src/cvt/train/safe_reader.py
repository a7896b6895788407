"""Reading a distributed checkpoint without running what a stranger may have put into it."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, Metadata

_ALLOWED = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
}
_ALLOWED_MODULE = "torch.distributed.checkpoint.metadata"


class SafeReader(FileSystemReader):
    """torch's reader, but for the list of contents, a pickle: only its own kinds are let in.

    The tensors themselves torch reads with `weights_only`.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the list of contents.

        Raises:
            pickle.UnpicklingError: It names something that such a list is not made of.
        """
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or module == _ALLOWED_MODULE or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
