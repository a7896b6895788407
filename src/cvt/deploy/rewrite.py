"""From a training form to the rewritten network: copy, passes, data type, device."""

from collections.abc import Sequence

import torch
from torch import nn

from cvt.deploy.deployed import Deployed
from cvt.deploy.forms import inference_copy
from cvt.deploy.passes import ALGEBRA, LAYOUT


def rewrite(
    model: nn.Module, names: Sequence[str], dtype: torch.dtype, device: torch.device
) -> Deployed:
    """Returns a copy with the named passes applied, in a data type on a device."""
    network = inference_copy(model)
    done = {name: apply(network) for name, apply in ALGEBRA.items() if name in names}
    network.to(device=device, dtype=dtype)
    done |= {name: apply(network) for name, apply in LAYOUT.items() if name in names}
    return Deployed(network, model, {name: count for name, count in done.items() if count})
