"""The reference's initialisation (microsoft/CvT f851e68, lib/models/cls_cvt.py)."""

from torch import nn


def init_stage(stage: nn.Module) -> None:
    """Linear weights N(0, 0.02), their biases 0; convolutions keep torch's default.

    LayerNorm and BatchNorm already start at weight 1 and bias 0.
    """
    for module in stage.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in stage.named_parameters(recurse=True):
        if name in ("cls_token", "dist_token", "pos_embed.table"):
            nn.init.trunc_normal_(parameter, std=0.02)


def init_head(head: nn.Linear) -> None:
    """Weight N(0, 0.02); the bias keeps torch's uniform default, as the reference's does."""
    nn.init.trunc_normal_(head.weight, std=0.02)
