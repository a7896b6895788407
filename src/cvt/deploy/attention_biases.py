"""Pass: the bias of k dropped, that of v carried into the output projection's.

A bias c of the keys adds q c to all logits of the query q, and softmax does not see what is added
to all: exp(l + q c) / sum exp(l + q c) = exp(l) / sum exp(l). A bias d of the values comes out as
it is, because the weights a of a query sum to 1: sum a (v + d) = sum a v + d; side by side the
heads' shares of d are d again, so that the output projection's bias becomes b + W d.
"""

from torch import nn

from cvt.deploy.attention_form import AttentionForm
from cvt.deploy.fold_linear import add_to_bias


def fold_attention_biases(network: nn.Module) -> int:
    """Removes the biases of k and v of every attention; returns how many."""
    count = 0
    for module in network.modules():
        if not isinstance(module, AttentionForm):
            continue
        k, v, proj = module.k.linear, module.v.linear, module.proj
        if v.bias is not None:
            add_to_bias(proj, proj.weight.double() @ v.bias.double())
        count += k.bias is not None or v.bias is not None
        for linear in (k, v):
            linear.register_parameter("bias", None)
    return count
