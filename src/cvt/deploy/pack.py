"""Pass: linear weights packed for the CPU's matrix product, with what follows in the same pass.

oneDNN reads a weight in blocks; the plain call brings it into blocks each time. The product also
applies the activation, and adds the residual, while its result is still in the cache: the same
sums, one trip through memory less. Float64, other devices, and CPUs on which the plain product is
faster (`onednn.packing_pays`) are left alone.
"""

from torch import nn

from cvt.deploy import onednn
from cvt.deploy.attention_form import AttentionForm
from cvt.deploy.mlp_form import MlpForm
from cvt.deploy.packed_linear import PackedLinear
from cvt.deploy.staged_form import StagedForm
from cvt.parts.tnt import TNT
from cvt.parts.tnt_block import WordsToPatches
from cvt.parts.token_layer import TokensToToken

_NAMES: dict[type[nn.Module], tuple[str, ...]] = {
    AttentionForm: ("q.linear", "k.linear", "v.linear", "proj"),
    MlpForm: ("fc1", "fc2"),
    TokensToToken: ("q", "k", "v", "proj"),
    WordsToPatches: ("proj",),
    StagedForm: ("head", "head_dist"),
    TNT: ("head",),
}


def pack_linears(network: nn.Module) -> int:
    """Packs the linear maps whose modules are ours, on a CPU that can; returns how many."""
    count = 0
    for module in list(network.modules()):
        for kind, names in _NAMES.items():
            if isinstance(module, kind):
                count += sum(_pack(module, name) for name in names)
    return count


def _pack(module: nn.Module, name: str) -> bool:
    path, _, own = name.rpartition(".")
    parent = module.get_submodule(path)
    linear = getattr(parent, own)
    if type(linear) is not nn.Linear or linear.weight.device.type != "cpu":
        return False
    dtype = linear.weight.dtype
    if not onednn.can_pack(dtype) or not onednn.packing_pays(dtype):
        return False
    activation = None
    if isinstance(parent, MlpForm) and own == "fc1" and onednn.activation_of(parent.act):
        activation, parent.act = parent.act, nn.Identity()
    setattr(parent, own, PackedLinear(linear, activation))
    return True
