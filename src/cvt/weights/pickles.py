"""Opening `.pth`, `.pt`, `.ckpt` and `.bin` files without ever running what is in them."""

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.weights.layouts import StateDict, is_network, strip_wrappers

# Where training scripts put the weights: timm and DeiT (averaged ones first, which are those that
# they evaluate), microsoft/CvT and Lightning, PyTorch's tutorial, DeepSpeed, others.
_NESTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "params_ema"),
    *("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network"),
    *("params", "weights"),
)
_DEEPEST = 3  # a file may also nest without end
_WANTED = re.compile(r"GLOBAL (\w+(?:\.\w+)+)")
# All that torch's unpickler raises on bytes that are no pickle, or only a part of one.
_BROKEN = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, LookupError, ValueError),
    *(TypeError, AttributeError, AssertionError, OverflowError, MemoryError, RecursionError),
)
# torch.save compresses nothing; a copy that was packed again may be, but not to a tenth.
_MOST_UNPACKED = 10


class _LeftUnread:
    """Stands where other trainers keep settings and figures: nothing is made of them.

    The unpickler gives it whatever the file has for the real class, whose code is never called.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Takes an item of what would have been a list."""

    def extend(self, values: Any) -> None:
        """Takes the items of what would have been a list."""


# What timm's and DeiT's arguments, figures computed by numpy, Lightning's hyperparameters and paths
# of folders are pickled as.
_LEFT_UNREAD = (
    *("argparse.Namespace", "types.SimpleNamespace"),
    *("numpy.dtype", "numpy.ndarray", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
    *("numpy.core.multiarray._reconstruct", "pathlib.Path", "pathlib.PosixPath"),
    *("pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"),
    *("pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta"),
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


def read_pickle(path: str | Path) -> StateDict:
    """Reads the state dict in a PyTorch file, be it the whole file or inside a training checkpoint.

    Only tensors and plain containers are unpickled (`weights_only=True`): code never runs. What a
    training script adds by way of `argparse`, numpy or Lightning is passed over by exact name.
    """
    path = Path(path)
    _check_packing(path)
    unread: Any = [(_LeftUnread, name) for name in _LEFT_UNREAD]
    try:
        with (
            open(path, "rb") as file,  # by a path, torch would go by its suffix
            warnings.catch_warnings(),
            torch.serialization.safe_globals(unread),
        ):
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except _BROKEN as error:
        if wanted := _WANTED.search(str(error)):
            raise UserError(
                f"{path} is refused: to open it, {wanted[1]!r} would have to be run, and a "
                "checkpoint may hold tensors only; ask its author for a state dict or a "
                ".safetensors file."
            ) from error
        raise UserError(
            f"{path} is truncated or no PyTorch file, expected a state dict written by torch.save; "
            "copy or download it again."
        ) from error
    return unwrap(content, source=str(path))


def _check_packing(path: Path) -> None:
    """A few kilobytes of a compressed archive could become any number of gigabytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
        size = path.stat().st_size
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # for torch.load to say
    if unpacked > _MOST_UNPACKED * size:
        raise UserError(
            f"{path} unpacks from {size:,} to {unpacked:,} bytes, expected at most "
            f"{_MOST_UNPACKED} times its size, as torch.save does not compress."
        )


def write_pickle(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Writes a state dict as `torch.save` does, all or nothing."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items()}
    # By way of memory, since torch.save itself hides the reason of a failed write.
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def unwrap(content: Any, *, source: str = "The checkpoint") -> StateDict:
    """Finds the state dict in a training checkpoint and removes wrappers' words from its names.

    Args:
        content: What was unpickled: a state dict, or a dict with one under `state_dict`, `model`,
            `model_state_dict` or the like; averaged weights (`state_dict_ema`, `model_ema`) come
            first. Under any other key it has to be the only one of a known network.
    """
    found = dict(_find(content, "", _DEEPEST, set()))
    if not found:
        got = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            got = f"a dict with keys {_listed(content)}" if content else "an empty dict"
        raise UserError(
            f"{source} holds no state dict: got {got}, expected names with tensors, "
            f"directly or under one of {', '.join(_NESTS)}."
        )
    if len(found) > 1:
        raise UserError(
            f"{source} holds the weights of several networks, under {_listed(found)}; expected "
            "one: save the one that you mean by itself, with torch.save."
        )
    state_dict = strip_wrappers(next(iter(found.values())))
    check_dense(state_dict, source=source)
    return state_dict


def check_dense(state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Refuses tensors that are no plain arrays of numbers, and more of them than memory holds."""
    for name, tensor in state_dict.items():
        kinds = {
            "nested": tensor.is_nested,
            "quantised": tensor.is_quantized,
            str(tensor.layout).removeprefix("torch."): tensor.layout != torch.strided,
            "meta": tensor.is_meta,
            "complex": tensor.is_complex(),
            type(tensor).__name__: type(tensor) not in (Tensor, nn.Parameter),
        }
        for kind in (each for each, holds in kinds.items() if holds):
            raise UserError(
                f"Got the {kind} tensor {name!r} in {source}, expected plain arrays of floating "
                "point numbers; save the model's weights as those."
            )
    stored = {
        storage.data_ptr(): storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in state_dict.values())
    }
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
    if claimed > 2 * sum(stored.values()) + 2**20:
        raise UserError(
            f"Got tensors of {claimed:,} bytes in {source} that repeat the same "
            f"{sum(stored.values()):,}, expected at most twice as many; save copies of them "
            "(`tensor.clone()`)."
        )


def _find(
    content: Any, where: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yields state dicts by the keys that lead to them; of the usual keys, the first one's alone.

    Up to `depth` mappings may lie around one, and a file may name one, then `seen`, many times.
    """
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))
    if content and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        yield where, content
    elif depth:
        for key in (each for each in _NESTS if each in content):
            inner = dict(_find(content[key], f"{where}.{key}".strip("."), depth - 1, seen))
            if inner:
                yield from inner.items()
                return
        for key, value in content.items():
            for path, found in _find(value, f"{where}.{key}".strip("."), depth - 1, seen):
                if "optim" not in str(key).lower() and is_network(found):
                    yield path, found


def _listed(keys: Collection[Any]) -> str:
    more = ", ..." if len(keys) > 5 else ""
    return f"{', '.join(repr(key)[:80] for key in list(keys)[:5])}{more}"
