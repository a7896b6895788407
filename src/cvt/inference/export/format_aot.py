"""The format `.aot.pt2`: machine code from AOTInductor, for the kind of device it was made on."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cvt.errors import UserError
from cvt.inference.export.format_program import calling


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, str], dtype: str) -> None:
    """Compiles the program, which takes from half a minute to several, and packs what comes out."""
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": dict(metadata)},
    )


def load(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns what runs the file, on the device that it was compiled for."""
    return calling(torch._inductor.aoti_load_package(str(path)), device)


def read(path: Path) -> dict[str, str]:
    """Returns the metadata, without loading the machine code."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("wrapper_metadata.json"):
                return json.loads(archive.read(name))
    return {}


def is_package(path: Path) -> bool:
    """Whether an archive holds machine code, and not a program."""
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def check_compiler() -> None:
    """Refuses a machine without C++ compiler.

    Raises:
        UserError: None of those that torch would take is on the path.
    """
    options = [each for each in torch._inductor.config.cpp.cxx if each]
    if not any(shutil.which(each) for each in options):
        said = "the environment variable CXX" if os.environ.get("CXX") else "torch's default"
        raise UserError(
            f"Got format aot, which needs a C++ compiler, and there is no {' or '.join(options)} "
            f"({said}); install one, or set CXX to yours."
        )
