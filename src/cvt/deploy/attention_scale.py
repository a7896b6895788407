"""Pass: the attention scale into the queries.

softmax(s (W x + b) K^T) = softmax(((s W) x + s b) K^T): a linear map takes the factor over, and the
kernel is called with the factor 1.
"""

from torch import nn

from cvt.deploy.attention_form import AttentionForm
from cvt.deploy.fold_linear import scale_output
from cvt.parts.token_layer import AttentionTokens


def fold_attention_scale(network: nn.Module) -> int:
    """Folds the scale of every softmax attention; returns how many."""
    count = 0
    for module in network.modules():
        if isinstance(module, AttentionForm | AttentionTokens) and module.scale != 1.0:
            q = module.q if isinstance(module, AttentionTokens) else module.q.linear
            scale_output(q, module.scale)
            module.scale = 1.0
            count += 1
    return count
