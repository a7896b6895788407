"""Pass: QuickGELU as a SiLU, and activations in place.

x sigmoid(a x) = silu(a x) / a, with a = 1.702. The first linear map of the MLP takes the factor a
over, the second the factor 1 / a; between them a plain SiLU works in the memory it reads.
"""

from torch import nn

from cvt.deploy.fold_linear import scale_input, scale_output
from cvt.deploy.mlp_form import MlpForm
from cvt.parts.mlp import QuickGELU

_FACTOR = 1.702


def fold_quick_gelu(network: nn.Module) -> int:
    """Rewrites the activation of every MLP that has one to rewrite; returns how many."""
    count = 0
    for module in network.modules():
        if not isinstance(module, MlpForm):
            continue
        if isinstance(module.act, QuickGELU):
            scale_output(module.fc1, _FACTOR)
            scale_input(module.fc2, 1 / _FACTOR)
            module.act = nn.SiLU(inplace=True)
            count += 1
        elif isinstance(module.act, nn.SiLU | nn.ReLU) and not module.act.inplace:
            module.act = type(module.act)(inplace=True)
            count += 1
    return count
