"""The formats that a network can be exported to, told by what file names end in."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from cvt.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Format:
    """A format, and what it takes.

    Args:
        title: In words.
        suffixes: What its files may be called; the first is the usual one and tells the format.
        dtypes: What it may compute in.
        packages: What has to be installed to write it and to check what was written.
        extra: Which extra of this library brings them.
        companion: The suffix of a second file.
        has_device: Whether it is made for the device it will run on.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    extra: str = ""
    companion: str = ""
    has_device: bool = False

    @property
    def module(self) -> ModuleType:
        """The file with `write`, `load` and `read`."""
        return import_module(f"cvt.inference.export.format_{self.name}")

    def companions(self, path: Path) -> tuple[str, ...]:
        """Returns the names of the files beside the one at `path`."""
        return (path.with_suffix(self.companion).name,) if self.companion else ()

    def check_installed(self, dtype: str = "float32") -> None:
        """Refuses a machine that lacks what the format takes.

        Args:
            dtype: What is to be written in it; int8 takes one package more.

        Raises:
            UserError: A package is missing.
        """
        in_int8 = dtype == "int8"
        packages = (*self.packages, "nncf") if in_int8 else self.packages
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            what = "dtype int8" if in_int8 else f"format {self.name}"
            extras = f"int8,{self.extra}" if in_int8 else self.extra
            raise UserError(
                f"Got {what}, which needs {', '.join(missing)}; install it with: "
                f'pip install "cvt[{extras}]"'
            )


_TORCH = ("float32", "float64", "bfloat16", "float16")
FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        # Before the program, whose suffix is the end of this one's.
        Format("aot", "AOTInductor package", (".aot.pt2", ".pt2"), _TORCH, has_device=True),
        Format("program", "torch.export program", (".pt2",), _TORCH, has_device=True),
        Format(
            "onnx",
            "ONNX",
            (".onnx",),
            ("float32", "float16"),
            packages=("onnx", "onnxscript", "onnxruntime"),
            extra="onnx",
        ),
        Format(
            "openvino",
            "OpenVINO",
            (".xml",),
            ("float32", "float16", "int8"),
            packages=("openvino",),
            extra="openvino",
            companion=".bin",
        ),
    )
}


def choose_format(path: Path, name: str | None = None) -> Format:
    """Returns the format of a file to write.

    Args:
        name: The format, where the path does not tell it.

    Raises:
        UserError: There is no such format (the nearest is named), or path and format don't go
            together.
    """
    if name is not None and name not in FORMATS:
        raise UserError(
            f"Got format {name!r}, expected one of {', '.join(FORMATS)}."
            f"{did_you_mean(str(name), FORMATS)}"
        )
    options = FORMATS.values() if name is None else (FORMATS[name],)
    for each in options:
        endings = each.suffixes[:1] if name is None else each.suffixes
        if path.name.lower().endswith(endings) and path.name.lower() not in endings:
            return each
    endings = ", ".join(f"{each.suffixes[0]} ({each.title})" for each in options)
    raise UserError(f"Got {str(path)!r} to export to, expected a name that ends in {endings}.")
