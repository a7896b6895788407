"""The front door of the room: one call from a training form to the form that infers."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvt.deploy.calibration import Calibrating
from cvt.deploy.engines import check_engine, on_engine
from cvt.deploy.passes import chosen_passes
from cvt.deploy.rewrite import rewrite
from cvt.deploy.target import choose_target, is_int8
from cvt.errors import UserError
from cvt.parts.block import Block
from cvt.parts.contract import VisionModel
from cvt.parts.token_layer import TokensToToken

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
            file or preprocessed batches, or a `cvt.deploy.Calibration`. What is returned then has
            its `agreement` with float32 on them.

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
        from cvt.deploy.quantize_torch import on_int8

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
