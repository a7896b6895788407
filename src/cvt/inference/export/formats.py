"""The formats that a network can be exported to: how each is written, run and read.

A format is one class and its row in `FORMATS`; what a file's name ends in tells which one it is.
"""

import errno
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cvt.errors import UserError, unknown
from cvt.files import expanded
from cvt.inference.export.trace import KEYS, Metadata, free_places, trace
from cvt.inference.rewrite import check_dtype
from cvt.runtime import NUMBER_FORMATS

Ranges = Tensor | None
"""Images (N, C, H, W) to find the ranges of int8 with; None in another dtype."""

Run = Callable[[Tensor], Tensor]
"""What runs a file: images (B, C, H, W) to outputs, both in float32 on the CPU."""


class ExportFormat:
    """A format, and what it takes.

    Of the `suffixes` that its files may have, the first is the usual one and tells the format. The
    `packages` write it and check what was written; the `extra` of this library brings them. A
    `companion` is the suffix of a second file. With `has_device` it is made for the device that it
    will run on.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    packages: tuple[str, ...] = ()
    extra: str = ""
    companion: str = ""
    has_device = False

    def trace(self, model: nn.Module, about: Metadata, device: torch.device) -> ExportedProgram:
        """Returns the network as the graph that is written."""
        return trace(model, about.sizes, NUMBER_FORMATS[about.dtype], device)

    def write(self, program: ExportedProgram, path: Path, about: Metadata, ranges: Ranges) -> None:
        """Saves the graph, and what the file is to say about itself."""
        raise NotImplementedError

    def load(self, path: Path, device: torch.device) -> Run:
        """Returns what runs the file, on the device if the format has one, else on the CPU."""
        raise NotImplementedError

    def read(self, path: Path) -> Mapping[str, str]:
        """Returns the metadata, without loading the weights where that can be."""
        raise NotImplementedError

    def companions(self, path: Path) -> tuple[str, ...]:
        """Returns the names of the files beside the one at `path`."""
        return (path.with_suffix(self.companion).name,) if self.companion else ()

    def check_installed(self, dtype: str = "float32") -> None:
        """Refuses a machine that lacks a package; int8 takes one more."""
        what, packages, extras = f"format {self.name}", self.packages, self.extra
        if dtype == "int8":
            what, packages, extras = "dtype int8", (*packages, "nncf"), f"int8,{extras}"
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            raise UserError(
                f"Got {what}, which needs {', '.join(missing)}; install it with: "
                f'pip install "cvt[{extras}]"'
            )

    def check_machine(self, dtype: str, device: torch.device) -> None:
        """Refuses a machine on which the format can't be written."""
        self.check_installed(dtype)


class _TorchFormat(ExportFormat):
    """What PyTorch itself runs, from an archive that is read alike whichever it is."""

    dtypes = ("float32", "float64", "bf16", "fp16")
    has_device = True

    def read(self, path: Path) -> Mapping[str, str]:
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
            for name in inside:
                if name.endswith("wrapper_metadata.json"):  # where AOTInductor puts it
                    return json.loads(archive.read(name))
            names = {name.partition("/")[2]: name for name in inside}
            found = {key: names[f"extra/{key}"] for key in KEYS if f"extra/{key}" in names}
            return {key: archive.read(name).decode() for key, name in found.items()}


def _calling(network: Run, device: torch.device) -> Run:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.to(device))

    return run


class ProgramFormat(_TorchFormat):
    """A graph of PyTorch's own operations; the metadata is in its extra files."""

    name, title, suffixes = "program", "torch.export program", (".pt2",)

    def write(self, program: ExportedProgram, path: Path, about: Metadata, ranges: Ranges) -> None:
        # By way of memory, since on a full disk torch's writer ends the process.
        content = BytesIO()
        with warnings.catch_warnings():
            # Kernels in channels-last order are dense, and saved as they are; the check reads them.
            warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
            torch.export.save(program, content, extra_files=about.to_strings())
        path.write_bytes(content.getbuffer())

    def load(self, path: Path, device: torch.device) -> Run:
        return _calling(torch.export.load(path).module(), device)


class AotFormat(_TorchFormat):
    """Machine code from AOTInductor, for the kind of device that it was made on."""

    name, title, suffixes = "aot", "AOTInductor package", (".aot.pt2", ".pt2")

    def write(self, program: ExportedProgram, path: Path, about: Metadata, ranges: Ranges) -> None:
        # This takes from half a minute to several.
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": about.to_strings()},
        )

    def load(self, path: Path, device: torch.device) -> Run:
        return _calling(torch._inductor.aoti_load_package(str(path)), device)

    def check_machine(self, dtype: str, device: torch.device) -> None:
        # A program may go to another machine; machine code may not.
        check_dtype(NUMBER_FORMATS[dtype], device)
        options = [each for each in torch._inductor.config.cpp.cxx if each]
        if not any(shutil.which(each) for each in options):
            said = "the environment variable CXX" if os.environ.get("CXX") else "torch's default"
            raise UserError(
                f"Got format aot, which needs a C++ compiler, and there is no "
                f"{' or '.join(options)} ({said}); install one, or set CXX to yours."
            )


class OnnxFormat(ExportFormat):
    """For ONNX Runtime and whatever else reads ONNX; the metadata is in its `metadata_props`."""

    name, title, suffixes = "onnx", "ONNX", (".onnx",)
    dtypes = ("float32", "fp16")
    packages, extra = ("onnx", "onnxscript", "onnxruntime"), "onnx"

    _LARGEST = 2**31 - 2**20  # a file is one protocol buffer, and these end at 2 GiB

    def write(self, program: ExportedProgram, path: Path, about: Metadata, ranges: Ranges) -> None:
        size = sum(each.nbytes for each in program.state_dict.values())
        if size > self._LARGEST:
            raise UserError(
                f"Got weights of {size / 2**30:.1f} GiB, expected at most 2 GiB for one ONNX file; "
                "take fp16 or another format."
            )
        names = free_places(program)  # which sizes are free, the program knows by itself
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=["output"],
            dynamic_shapes=(names,) if names else None,
            external_data=False,
            verbose=False,
        )
        assert converted is not None
        converted.model.metadata_props.update(about.to_strings())
        converted.save(str(path), external_data=False)

    def load(self, path: Path, device: torch.device) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])

    def read(self, path: Path) -> Mapping[str, str]:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load(str(path), load_external_data=False)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        return {each.key: each.value for each in model.metadata_props}


class OpenVinoFormat(ExportFormat):
    """OpenVINO's own graph, the weights in `.bin` beside it; the metadata is in its `rt_info`.

    It is traced in float32: fp16 is for the weights alone, as OpenVINO computes in a type of its
    own choice.
    """

    name, title, suffixes = "openvino", "OpenVINO", (".xml",)
    dtypes = ("float32", "fp16", "int8")
    packages, extra = ("openvino",), "openvino"
    companion = ".bin"

    def trace(self, model: nn.Module, about: Metadata, device: torch.device) -> ExportedProgram:
        return trace(model, about.sizes, torch.float32, device)

    def write(self, program: ExportedProgram, path: Path, about: Metadata, ranges: Ranges) -> None:
        import openvino

        from cvt.inference.openvino import converted, quantized

        graph = converted(program)
        (image,), (output,) = graph.inputs, graph.outputs
        image.get_tensor().set_names({"image"})
        output.get_tensor().set_names({"output"})
        if ranges is not None:
            graph = quantized(graph, ranges)
        for key, value in about.to_strings().items():
            graph.set_rt_info(value, [key])
        try:
            openvino.save_model(graph, str(path), compress_to_fp16=about.dtype == "fp16")
        except RuntimeError as error:
            if "iostream" not in str(error):
                raise
            # OpenVINO does not say why it could not write: nearly always for want of room.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error

    def load(self, path: Path, device: torch.device) -> Run:
        from cvt.inference.openvino import core

        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        network = core().compile_model(str(path), "CPU", exact)
        return lambda images: torch.from_numpy(network(images.numpy())[0].copy())

    def read(self, path: Path) -> Mapping[str, str]:
        info = ElementTree.parse(path).getroot().find("rt_info")
        found = {} if info is None else {each.tag: each.get("value", "") for each in info}
        return {key: found[key] for key in KEYS if key in found}


# AOTInductor's before the program's, whose suffix is the end of its own.
_ALL = (AotFormat(), ProgramFormat(), OnnxFormat(), OpenVinoFormat())
FORMATS: dict[str, ExportFormat] = {each.name: each for each in _ALL}


def choose_format(path: Path, name: str | None = None) -> ExportFormat:
    """Returns the format of a file to write: the one named, else what the path tells."""
    if name is not None and name not in FORMATS:
        raise unknown("format", name, FORMATS)
    options = FORMATS.values() if name is None else (FORMATS[name],)
    for each in options:
        endings = each.suffixes[:1] if name is None else each.suffixes
        if path.name.lower().endswith(endings) and path.name.lower() not in endings:
            return each
    endings = ", ".join(f"{each.suffixes[0]} ({each.title})" for each in options)
    raise UserError(f"Got {str(path)!r} to export to, expected a name that ends in {endings}.")


def read_metadata(path: str | Path) -> Metadata:
    """Reads what an exported file says about itself."""
    path = expanded(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}, expected one that `cvt export` wrote.")
    chosen = choose_format(path)
    chosen.check_installed()
    try:
        found = chosen.read(path)
    except (zipfile.BadZipFile, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is damaged or no {chosen.title} file ({error}).") from error
    return Metadata.from_strings(found, source=str(path))
