"""A private copy of a network, spelled in inference forms: what the passes then rewrite."""

import copy
from collections import OrderedDict

import torch
from timm.layers import Mlp
from torch import nn

from cvt.deploy.attention_form import AttentionForm, Projection
from cvt.deploy.block_form import BlockForm
from cvt.deploy.mlp_form import MlpForm
from cvt.deploy.staged_form import StagedForm
from cvt.parts.attention import Attention
from cvt.parts.backbone import Backbone
from cvt.parts.block import Block
from cvt.parts.stage import Stage
from cvt.parts.tnt import TNT
from cvt.parts.token_layer import TokensToToken


def inference_copy(model: nn.Module) -> nn.Module:
    """Returns a copy that shares nothing with the model: in eval mode, without hooks or gradients.

    Blocks stand in it as `BlockForm`s, which compute the same; a `Backbone` is a `StagedForm`. A
    copy of a model in half precision is in float32, so that the passes round once.
    """
    network = copy.deepcopy(model, _no_hooks(model)).eval().requires_grad_(False)
    first = next(network.parameters(), None)
    if first is not None and first.dtype in (torch.bfloat16, torch.float16):
        network.float()
    for module in list(network.modules()):
        if isinstance(module, Stage | TNT):
            module.grad_checkpointing = False
        for name, child in module.named_children():
            if isinstance(child, Block):
                setattr(module, name, _block_form(child))
        if isinstance(module, TokensToToken):
            module.register_module("mlp", MlpForm(module.mlp))
    return StagedForm(network) if isinstance(network, Backbone) else network


def _no_hooks(model: nn.Module) -> dict[int, object]:
    """What `deepcopy` takes for already copied: empty tables in the place of hooks."""
    return {
        id(table): OrderedDict()
        for module in model.modules()
        for name, table in vars(module).items()
        if name in ("_forward_hooks", "_forward_pre_hooks") and table
    }


def _block_form(block: Block) -> nn.Module:
    """A block with another mixer or MLP than those of `cvt.parts` runs as it is."""
    attn, mlp = block.attn, block.mlp
    if not isinstance(attn, Attention) or not isinstance(mlp, Mlp):
        return block
    if not all(isinstance(each, Projection) for each in (attn.q, attn.k, attn.v)):
        return block
    if not isinstance(mlp.norm, nn.Identity):
        return block
    return BlockForm(block, AttentionForm(attn), MlpForm(mlp))
