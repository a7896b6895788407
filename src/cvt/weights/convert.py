"""From one layout to another: open, rename, write."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from cvt.errors import UserError, unknown
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.hugging_face import check_expressible, write_hugging_face
from cvt.weights.layouts import StateDict, to_microsoft
from cvt.weights.pickles import write_pickle
from cvt.weights.record import Record
from cvt.weights.source import open_weights
from cvt.weights.timm_folder import model_args, write_timm_folder

Target = Literal["cvt", "microsoft", "hugging_face", "timm"]

_SUFFIXES: dict[str, tuple[str, ...]] = {"cvt": (".safetensors",), "microsoft": (".pth", ".pt")}
_FOLDERS = ("hugging_face", "timm")
# Rates that change training only, and sizes that are seen in the tensors.
_HARMLESS = ("num_classes", "in_chans", "img_size", "extra_level")


def convert(source: str | Path, out: str | Path, to: Target | None = None) -> str:
    """Converts a checkpoint; the tensors come out bit for bit as they went in.

    Args:
        source: Anything that `open_weights` takes.
        out: Where to: `.safetensors` makes ours, `.pth` or `.pt` Microsoft's, a name without
            suffix a Hugging Face folder. A checkpoint that is there is replaced, unless it is the
            source.
        to: The layout, where the name does not tell it; `timm` is a folder as well.

    Returns:
        What gets lost or computed differently on the other side; empty if nothing does.
    """
    path = Path(out)
    target = _target(path, to)
    _check_place(path, Path(source))
    state_dict, record = open_weights(source)
    write: dict[str, Callable[..., list[str] | None]] = {
        "cvt": save_checkpoint,
        "microsoft": _write_microsoft,
        "hugging_face": write_hugging_face,
        "timm": write_timm_folder,
    }
    return " ".join(write[target](path, state_dict, record) or ())


def _target(path: Path, to: str | None) -> str:
    """Decides on the layout, and checks that the name goes with it."""
    options = get_args(Target)
    if to is not None and to not in options:
        raise unknown("layout", to, options)
    kind = _kind(path, to)
    target = to or ("hugging_face" if kind == "folder" else kind)
    if target is None or kind != ("folder" if target in _FOLDERS else target):
        asked = f" for the {to} layout" if to else ""
        raise UserError(
            f"Got {path}{asked}, expected NAME.safetensors (cvt), NAME.pth (microsoft), or a "
            "folder, named without suffix (hugging_face, or timm where that is asked for)."
        )
    return target


def _check_place(path: Path, source: Path) -> None:
    """Refuses to write over what is read, and among files that are no checkpoint's."""
    if not os.path.exists(path):
        return
    if os.path.exists(source) and (
        path.samefile(source)
        or (source.is_dir() and path.parent.samefile(source))
        or (path.is_dir() and source.parent.samefile(path))
    ):
        raise UserError(f"Got {path} to write, which {source} is read from; name another place.")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise UserError(
            f"Got the folder {path}, which holds other things than a model; name a new one, or a "
            "file in it."
        )


def _kind(path: Path, to: str | None) -> str | None:
    """What a name stands for: `folder`, one of the file layouts, or None."""
    if path.is_dir():
        return "folder"
    for layout, suffixes in _SUFFIXES.items():
        if path.suffix in suffixes:
            return layout
    # A suffix that says nothing may be a slip of the pen, unless a layout is asked for.
    return "folder" if not path.exists() and (to or not path.suffix) else None


def _write_microsoft(path: Path, state_dict: StateDict, record: Record) -> list[str]:
    check_expressible(record.spec, "microsoft")
    write_pickle(path, to_microsoft(state_dict))
    notes = ["A .pth holds tensors only: the class names and the preprocessing are not in it."]
    changed = [
        name
        for name in model_args(record.model, record.spec)
        if name not in _HARMLESS and not name.endswith("_rate")
    ]
    if changed:
        notes.append(
            f"It does not say either how the model differs from {record.model} "
            f"({', '.join(changed)}); keep the checkpoint that it was made from."
        )
    return notes
