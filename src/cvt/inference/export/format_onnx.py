"""The format `.onnx`, for ONNX Runtime and whatever else reads ONNX."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cvt.errors import UserError
from cvt.inference.export.trace import free_places

# Protocol buffers, of which a file is one, end at 2 GiB.
_LARGEST = 2**31 - 2**20


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, str], dtype: str) -> None:
    """Saves the graph as one file, the metadata in its `metadata_props`.

    Raises:
        UserError: The weights are more than a file of this format can hold.
    """
    size = sum(each.nbytes for each in program.state_dict.values())
    if size > _LARGEST:
        raise UserError(
            f"Got weights of {size / 2**30:.1f} GiB, expected at most 2 GiB for one ONNX file; "
            "take float16 or another format."
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
    converted.model.metadata_props.update(metadata)
    converted.save(str(path), external_data=False)


def load(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns what runs the file in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (output,) = session.run(None, {"image": images.numpy()})
        return torch.from_numpy(output)

    return run


def read(path: Path) -> dict[str, str]:
    """Returns the metadata.

    Raises:
        ValueError: The file is damaged.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return {each.key: each.value for each in model.metadata_props}
