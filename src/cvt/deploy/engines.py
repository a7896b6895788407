"""Which engine runs the rewritten graph: torch itself, or another behind the same call."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from cvt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cvt.deploy.calibration import Calibrating

ENGINES = ("torch", "openvino")


def check_engine(engine: str) -> None:
    """Refuses an engine that there is not.

    Raises:
        UserError: The name is unknown (the nearest is named).
    """
    if engine not in ENGINES:
        raise UserError(
            f"Got engine {engine!r}, expected one of {', '.join(ENGINES)}."
            f"{did_you_mean(str(engine), ENGINES)}"
        )


def on_engine(
    engine: str,
    model: "nn.Module",
    *,
    dtype: "torch.dtype | str | None",
    device: "torch.device | str | None",
    names: Sequence[str],
    calibration: "Calibrating | None" = None,
) -> "nn.Module":
    """Returns the model behind the call of another engine than torch, which is imported here.

    Args:
        engine: One of `ENGINES`.
        model: The training form.
        dtype: As `deploy` got it.
        device: As `deploy` got it.
        names: The passes to apply; kernels and packing are torch's alone, and are left out.
        calibration: As `deploy` got it.
    """
    assert engine == "openvino"
    on_openvino = import_module("cvt.deploy.openvino_engine").on_openvino
    kept = tuple(name for name in names if name not in ("kernels", "pack"))
    return on_openvino(model, dtype=dtype, device=device, names=kept, calibration=calibration)
