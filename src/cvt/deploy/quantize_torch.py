"""A rewritten network with linear maps in int8, in PyTorch, by torchao."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from cvt.deploy.calibration import Calibrating, calibration_images
from cvt.deploy.deployed import Deployed
from cvt.deploy.precision import checked_agreement
from cvt.deploy.rewrite import rewrite
from cvt.deploy.target import choose_target
from cvt.errors import UserError

# A product of fewer numbers than these costs less than finding their ranges.
_NARROWEST = 32


def on_int8(
    model: nn.Module,
    names: Sequence[str],
    device: torch.device | str | None,
    calibration: Calibrating | None,
) -> Deployed:
    """Returns the rewritten network whose linear maps compute in int8, all else in float32.

    Weights have a scale for each output, activations one for each token, found when they come:
    nothing is calibrated, and images are only for the `agreement`. The classifier stays in float32.

    On a CPU this is for trying out what int8 does to the answers, or for its quarter of the
    memory: with AVX2 alone, torch's int8 product took twenty times as long as that in float32
    (CvT-13's first linear map of the MLP, Zen 3, torch 2.15, torchao 0.18). For speed on a CPU
    take `engine="openvino"`.

    Args:
        model: The training form.
        names: The passes to apply.
        device: As `deploy` got it.
        calibration: Images to compare with float32 on, or None.

    Raises:
        UserError: torchao is missing, there is no such device, or the images cannot be used.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from torchao.quantization.quant_api import quantize_
    except ImportError:
        raise UserError(
            "Int8 in PyTorch needs torchao; install it with: pip install 'cvt[torchao]'."
        ) from None
    images = None if calibration is None else calibration_images(model, calibration)
    _, where = choose_target(model, torch.float32, device)
    kept = [name for name in names if name != "pack"]
    deployed = rewrite(model, kept, torch.float32, where)
    reference = None if images is None else rewrite(model, kept, torch.float32, where)
    quantize_(deployed, Int8DynamicActivationInt8WeightConfig(), _wanted(deployed.network))
    deployed.kind = "int8"
    if images is not None and reference is not None:
        deployed.agreement = checked_agreement(reference, deployed, images.to(where))
    return deployed


def _wanted(network: nn.Module) -> Callable[[nn.Module, str], bool]:
    heads = {id(getattr(network, name, None)) for name in ("head", "head_dist", "fc", "classifier")}

    def is_wanted(module: nn.Module, name: str) -> bool:
        if type(module) is not nn.Linear or id(module) in heads:
            return False
        return min(module.in_features, module.out_features) >= _NARROWEST

    return is_wanted
