"""The format `.pt2`: a graph of PyTorch's own operations, run by PyTorch itself."""

import warnings
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cvt.inference.export.trace import KEYS


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, str], dtype: str) -> None:
    """Saves the program, the metadata in its extra files."""
    # By way of memory, since on a full disk torch's writer ends the process.
    content = BytesIO()
    with warnings.catch_warnings():
        # Kernels in channels-last order are dense, and saved as they are; the check reads them.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, content, extra_files=dict(metadata))
    path.write_bytes(content.getbuffer())


def load(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns what runs the file; the weights go where they were when it was written."""
    return calling(torch.export.load(path).module(), device)


def calling(
    network: Callable[[Tensor], Tensor], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Returns what brings images to a network of torch's formats, and calls it."""

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.to(device))

    return run


def read(path: Path) -> dict[str, str]:
    """Returns the metadata, without loading the weights."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        inside = {key: names[f"extra/{key}"] for key in KEYS if f"extra/{key}" in names}
        return {key: archive.read(name).decode() for key, name in inside.items()}
