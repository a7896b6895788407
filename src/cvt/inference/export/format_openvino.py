"""The format `.xml`, with the weights in `.bin` beside it: OpenVINO's own representation."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cvt.inference.export.trace import KEYS
from cvt.inference.openvino import converted, core, quantized_model


def write(
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
    dtype: str,
    calibration: Tensor | None = None,
) -> None:
    """Saves both files, the metadata in the graph's `rt_info`; float16 is for the weights alone.

    Args:
        calibration: Images (N, C, H, W) to find the ranges of int8 with, which is written for them.
    """
    import openvino

    graph = converted(program)
    (image,), (output,) = graph.inputs, graph.outputs
    image.get_tensor().set_names({"image"})
    output.get_tensor().set_names({"output"})
    if calibration is not None:
        graph = quantized_model(graph, calibration)
    for key, value in metadata.items():
        graph.set_rt_info(value, [key])
    try:
        openvino.save_model(graph, str(path), compress_to_fp16=dtype == "float16")
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        # OpenVINO does not say why it could not write, which is nearly always for want of room.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def load(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns what runs the files, on the CPU and in float32."""
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    network = core().compile_model(str(path), "CPU", exact)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(network(images.numpy())[0].copy())

    return run


def read(path: Path) -> dict[str, str]:
    """Returns the metadata."""
    about = ElementTree.parse(path).getroot().find("rt_info")
    found = {} if about is None else {each.tag: each.get("value", "") for each in about}
    return {key: found[key] for key in KEYS if key in found}
