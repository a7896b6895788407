"""The state that a run goes on from: `last.pt` in its folder."""

import io
import pickle
import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.train.config import TrainConfig
from cvt.train.progress import Progress

STATE_FILE = "last.pt"
# What may differ when a run goes on, because it does not change what is computed.
_FREE = ("resume", "device", "num_workers", "data_dir", "download")

# What torch's unpickler raises on bytes that are none of its, and what a strange content causes.
_BROKEN = (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What `last.pt` holds besides tensors, and the tensors.

    There is no generator state: randomness is a function of the position (`cvt.train.seeding`).
    """

    config: TrainConfig
    progress: Progress
    model: dict[str, Any]
    optimizer: dict[str, Any]
    num_images: int


def save_state(
    run: Path,
    config: TrainConfig,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    num_images: int,
) -> None:
    """Writes `last.pt`, replacing the one before only once the new one is complete.

    Raises:
        UserError: The disk is full or the folder not writable; the old file is kept.
    """
    state = {
        "config": config.to_dict(),
        "progress": progress.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "num_images": num_images,
    }
    # Through memory, because torch reports a full disk as an internal error about positions.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(run / STATE_FILE) as file:
        file.write(buffer.getbuffer())


def load_state(run: Path) -> TrainState:
    """Reads `last.pt` of a run's folder, tensors onto the CPU, without running code from it.

    Raises:
        UserError: There is none, or it is not one of ours.
    """
    path = run / STATE_FILE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
        return TrainState(
            config=TrainConfig.from_dict(state["config"]),
            progress=Progress.from_dict(state["progress"]),
            model=state["model"],
            optimizer=state["optimizer"],
            num_images=state["num_images"],
        )
    except OSError as error:
        raise UserError(
            f"Cannot resume {run}: there is no {STATE_FILE} to read in it ({error.strerror}); "
            "give the folder of a run."
        ) from error
    except _BROKEN as error:
        raise UserError(
            f"Cannot resume {run}: its {STATE_FILE} is damaged or not written by this library; "
            "train again."
        ) from error


def resumed_config(given: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """Returns the stored config with what the caller may change: device, workers, data's place.

    A field of `given` that has its default counts as not given.

    Raises:
        UserError: Another field is given and differs, so the run would not be the same.
    """
    default = TrainConfig()
    _refuse_changes(given, stored, default, "")
    changed = {
        name: getattr(given, name)
        for name in _FREE
        if getattr(given, name) != getattr(default, name)
    }
    return replace(stored, **changed)


def _refuse_changes(given: Any, stored: Any, default: Any, prefix: str) -> None:
    for each in fields(given):
        new, old, usual = (getattr(one, each.name) for one in (given, stored, default))
        if is_dataclass(new):
            _refuse_changes(new, old, usual, f"{each.name}.")
        elif each.name not in _FREE and new != usual and new != old:
            raise UserError(
                f"Got {prefix}{each.name} {new!r}, but the run to resume was started with "
                f"{old!r}; leave it out, or start a new run."
            )
