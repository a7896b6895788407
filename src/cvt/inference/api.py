"""`cvt.deploy`: one call from a training form to the form that infers."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvt.errors import UserError, unknown
from cvt.inference.int8 import Calibrating, check_calibration, on_int8
from cvt.inference.passes import chosen_passes
from cvt.inference.rewrite import choose_target, rewrite
from cvt.parts.block import Block
from cvt.parts.embed import TokensToToken
from cvt.parts.model import VisionModel
from cvt.runtime import number_format

ENGINES = ("torch", "openvino")

_REWRITTEN = (VisionModel, Block, TokensToToken, _BatchNorm)


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

    Every rewrite is exact algebra, which stands above its pass in `cvt.inference.passes`. The model
    that is given is not touched, whatever mode it is in; the copy is in eval mode, has none of its
    hooks, and records no gradient. Its `state_dict` is no checkpoint.

    Args:
        model: A network of this library's, of any system, one of timm's, or a module around one.
            What no pass knows stays as it is; `rewritten` of what is returned says what was done.
        dtype: float32, float64, bf16, fp16 or int8 (linear maps or more, of weights and
            activations), by name or as torch's; None: the model's.
        device: Where it will run; None: where the model is.
        engine: `torch`, or `openvino` for the same graph in OpenVINO, on the CPU.
        without: Names of passes to leave out, of `cvt.inference.PASSES`. Leave out `pack` for
            `torch.compile` on a CPU, which does not take packed weights.
        calibration: For int8, which OpenVINO needs it for: real images, as a folder, a parquet
            file or preprocessed batches, or a `cvt.inference.Calibration`. What is returned then
            has its `agreement` with float32 on them.
    """
    names = chosen_passes(without)
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if not hasattr(model, "spec") and not any(isinstance(m, _REWRITTEN) for m in model.modules()):
        raise UserError(
            f"Got a {type(model).__name__} with nothing in it to rewrite, expected a cvt model, "
            "such as cvt.create_model or cvt.load return."
        )
    kind = None if dtype is None else number_format(dtype)
    check_calibration(kind, calibration, is_needed=False)
    if engine == "openvino":
        from cvt.inference.openvino import on_openvino

        return on_openvino(model, names, kind, device, calibration)
    if kind == "int8":
        return on_int8(model, names, device, calibration)
    return rewrite(model, names, *choose_target(model, kind, device))
