"""Pass: only the class token computed in the last block.

A classifier that reads the class token reads nothing that the last block makes of the others. They
are keys and values of its attention, so the first norm, k and v see all tokens; the queries, the
output projection, the second norm and the MLP work on each token by itself, and are computed for
the prefix alone: the class token, and the distillation token where there is one. A position
encoding generator behind that block changes grid tokens only, and falls away.
"""

from torch import nn

from cvt.deploy.block_form import BlockForm
from cvt.deploy.stage_form import StageForm
from cvt.deploy.staged_form import StagedForm
from cvt.parts.tnt import TNT
from cvt.parts.tnt_block import TNTBlock


def compute_class_token_only(network: nn.Module) -> int:
    """Rewrites the last block where the class token alone is pooled; returns 1 there, else 0."""
    last = _last_block(network)
    if last is None:
        return 0
    last.only_prefix = True
    return 1


def _last_block(network: nn.Module) -> BlockForm | None:
    """The block whose output only the pooling reads; a network inside another may be asked more."""
    last = None
    if isinstance(network, StagedForm) and network.global_pool == "token":
        stage = network.stages[-1]
        assert isinstance(stage, StageForm)
        last = stage.blocks[-1] if len(stage.blocks) else None
    elif isinstance(network, TNT) and network.global_pool == "token":
        block = network.blocks[-1]
        assert isinstance(block, TNTBlock)
        last = block.outer
    return last if isinstance(last, BlockForm) else None
