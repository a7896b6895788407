"""Where a deployed network runs, and in which data type."""

import torch
from torch import nn

from cvt.errors import UserError, did_you_mean
from cvt.train.device import choose_device, cpu_computes

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def is_int8(dtype: torch.dtype | str | None) -> bool:
    """Whether a data type is the one of quantised networks, which no tensor is cast to."""
    return dtype == torch.int8 or dtype == "int8"


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Returns the data type of a model's floating-point parameters, by the first; None without."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), None)


def choose_target(
    model: nn.Module,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[torch.dtype, torch.device]:
    """Returns data type and device: those asked for, else the model's own.

    Raises:
        UserError: There is no such data type or device, or the device does not compute in it. A
            model that stays as and where it is is not asked.
    """
    first = next((each for each in model.parameters() if each.is_floating_point()), None)
    own_dtype = torch.float32 if first is None else first.dtype
    own_device = torch.device("cpu") if first is None else first.device
    chosen = own_dtype if dtype is None else _dtype(dtype)
    where = own_device if device is None else choose_device(str(device))
    if dtype is not None or device is not None:
        check_dtype(chosen, where)
    return chosen, where


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    names = (*DTYPES, "int8")
    if str(dtype) not in DTYPES:
        raise UserError(
            f"Got dtype {str(dtype)!r}, expected one of {', '.join(names)}."
            f"{did_you_mean(str(dtype), names)}"
        )
    return DTYPES[str(dtype)]


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Refuses a data type that a device does not compute in.

    Raises:
        UserError: It lacks the instructions.
    """
    name = str(dtype).removeprefix("torch.")
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        if not cpu_computes(dtype):
            raise UserError(
                f"Got dtype {name}, for which this CPU has no instructions and could only imitate "
                "it at a fraction of the speed; take float32."
            )
    elif device.type == "cuda" and dtype == torch.bfloat16:
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"Got dtype {name}, which this GPU lacks; take float16 or float32.")
    elif device.type == "mps" and dtype == torch.float64:
        raise UserError(f"Got dtype {name}, which Apple's GPUs lack; take float32.")
