"""Opening `.pth`, `.pt` and `.bin` files without ever running what is in them."""

import io
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.weights.layouts import StateDict, strip_wrappers

# Where training scripts put the weights: timm and DeiT (averaged ones first, which are those that
# they evaluate), microsoft/CvT, DeepSpeed, others.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state")
_DEEPEST = 3  # a file may also nest without end
_WANTED = re.compile(r"GLOBAL (\w+(?:\.\w+)+)")
# All that torch's unpickler raises on bytes that are no pickle, or only a part of one.
_BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
)


def read_pickle(path: str | Path) -> StateDict:
    """Reads the state dict in a PyTorch file, be it the whole file or inside a training checkpoint.

    Only tensors and plain containers are unpickled (`weights_only=True`): code never runs.

    Raises:
        UserError: The file is missing, truncated or no PyTorch file; it needs more than tensors
            (the message names what it wants); or there is no state dict in it.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except _BROKEN as error:
        raise _refusal(path, error) from error
    return unwrap(content, source=str(path))


def write_pickle(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a state dict as `torch.save` does, all or nothing.

    Raises:
        UserError: The disk is full or the place not writable; the file that was there is kept.
    """
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items()}
    # By way of memory, since torch.save itself hides the reason of a failed write.
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def unwrap(content: Any, *, source: str = "The checkpoint") -> StateDict:
    """Finds the state dict in a training checkpoint and removes `module.` before its names.

    Args:
        content: What was unpickled: a state dict, or a dict with one under `state_dict`, `model`,
            `module` or `model_state`; averaged weights (`state_dict_ema`, `model_ema`) come first.
        source: Where it comes from, for the message.

    Raises:
        UserError: There is no mapping from names to tensors in it.
    """
    found = content
    for _ in range(_DEEPEST):
        if isinstance(found, Mapping) and not _is_state_dict(found):
            found = next((found[key] for key in _NESTS if isinstance(found.get(key), Mapping)), {})
    if not isinstance(found, Mapping) or not _is_state_dict(found):
        raise UserError(
            f"{source} holds no state dict: got {_describe(content)}, expected names with tensors, "
            f"directly or under one of {', '.join(_NESTS)}."
        )
    return strip_wrappers(found)


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and len(found) > 0
        and all(isinstance(name, str) for name in found)
        and all(isinstance(tensor, Tensor) for tensor in found.values())
    )


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = list(content)
        more = ", ..." if len(keys) > 5 else ""
        return (
            f"a dict with keys {', '.join(map(repr, keys[:5]))}{more}" if keys else "an empty dict"
        )
    return f"a {type(content).__name__}"


def _refusal(path: Path, error: Exception) -> UserError:
    wanted = _WANTED.search(str(error))
    if wanted:
        return UserError(
            f"{path} is refused: to open it, {wanted[1]!r} would have to be run, and a checkpoint "
            "may hold tensors only; ask its author for a state dict or a .safetensors file."
        )
    return UserError(
        f"{path} is truncated or no PyTorch file, expected a state dict written by torch.save; "
        "copy or download it again."
    )
