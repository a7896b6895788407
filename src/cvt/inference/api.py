"""The front door of the room: one call from a training form to the form that infers."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from cvt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cvt.inference.int8 import Calibrating
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvt.inference.int8 import Calibrating
from cvt.inference.passes import chosen_passes
from cvt.inference.rewrite import choose_target, is_int8, rewrite
from cvt.parts.block import Block
from cvt.parts.embed import TokensToToken
from cvt.parts.model import VisionModel

# --- Which engine runs the rewritten graph: torch itself, or another behind the same call.

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
    on_openvino = import_module("cvt.inference.openvino").on_openvino
    kept = tuple(name for name in names if name not in ("kernels", "pack"))
    return on_openvino(model, dtype=dtype, device=device, names=kept, calibration=calibration)


_KNOWN = (VisionModel, Block, TokensToToken, _BatchNorm)


def deploy(
    model: nn.Module,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    engine: str = "torch",
    without: Sequence[str] = (),
    calibration: Calibrating | None = None,
) -> nn.Module:
    """Returns the model rewritten for inference: the same call, outputs equal to float rounding.

    Every rewrite is exact algebra, described in the file of its pass. The model that is given is
    not touched, whatever mode it is in; the copy is in eval mode, has none of its hooks, and
    records no gradient. Its `state_dict` is no checkpoint.

    Args:
        model: A network of this library's, of any system, or a module around one.
        dtype: torch.float32, float64, bfloat16, float16 or int8 (linear maps or more, of weights
            and activations), or its name; None: the model's.
        device: Where it will run; None: where the model is.
        engine: `torch`, or `openvino` for the same graph in OpenVINO, on the CPU.
        without: Names of passes to leave out: batchnorm, norm_affine, attention_scale,
            attention_biases, quick_gelu, class_token, channels_last, kernels, slices, pack. Leave
            out pack for `torch.compile` on a CPU, which does not take packed weights.
        calibration: For int8, which OpenVINO needs it for: real images, as a folder, a parquet
            file or preprocessed batches, or a `cvt.inference.Calibration`. What is returned then
            has its `agreement` with float32 on them.

    Raises:
        UserError: There is nothing in the model to rewrite; no such dtype, device, engine or pass;
            the device lacks the dtype; a package is missing; or images and int8 don't come
            together.
    """
    names = chosen_passes(without)
    check_engine(engine)
    _check(model, dtype, calibration)
    if engine != "torch":
        return on_engine(
            engine, model, dtype=dtype, device=device, names=names, calibration=calibration
        )
    if is_int8(dtype):
        from cvt.inference.int8 import on_int8

        return on_int8(model, names, device, calibration)
    return rewrite(model, names, *choose_target(model, dtype, device))


def _check(
    model: nn.Module, dtype: torch.dtype | str | None, calibration: Calibrating | None
) -> None:
    if not any(isinstance(module, _KNOWN) for module in model.modules()):
        raise UserError(
            f"Got a {type(model).__name__} with nothing in it to rewrite, expected a cvt model, "
            "such as cvt.create_model or cvt.load return."
        )
    if calibration is not None and not is_int8(dtype):
        raise UserError(
            f"Got calibration images with dtype {dtype}, expected them with int8 alone; leave them "
            "out, or pass dtype='int8'."
        )
