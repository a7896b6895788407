"""The same small network twice: as the judge's code builds it, and as ours; weights at random."""

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.tnt import TNT as TimmTNT
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import PvtConfig, PvtForImageClassification

from cvt.parts.model import VisionModel
from cvt.systems.catalog import ROWS, SYSTEMS, make_network
from cvt.systems.system import Layout
from randomise import randomise

_TOKENS = ("_token", "pos_embed", "_pos", "position_embeddings")
_PYRAMID = {"depths": [1, 2, 1, 2], "num_classes": 10}
_WIDTHS = [16, 32, 40, 64]

ROW_OF = {
    "vit_16": "vit_small_patch16_224",
    "vit_32": "vit_small_patch32_224",
    "deit": "deit_tiny_patch16_224",
    "deit_distilled": "deit_tiny_distilled_patch16_224",
    "twins": "twins_pcpvt_small",
    "tnt": "tnt_s_patch16_224",
    "pvt": "pvt_tiny",
}
TIMM = tuple(name for name in ROW_OF if name != "pvt")


def randomised(judge: nn.Module) -> nn.Module:
    """Fills every parameter; tokens and tables get the size 1 that ours have."""
    randomise(judge)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in judge.state_dict().items():
            if name.endswith(_TOKENS):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return judge.eval()


def judge_of(name: str, size: int, depth: int = 2) -> nn.Module:
    """Builds the judge of a small network, made for images of this size."""
    return randomised(_build(name, size, depth))


def ours_of(name: str, size: int, depth: int = 2) -> VisionModel:
    """Builds ours, with weights of its own."""
    row = ROWS[ROW_OF[name]]
    if name in ("twins", "pvt"):
        return make_network(
            row.change(
                embed_dim=_WIDTHS,
                depth=_PYRAMID["depths"],
                num_classes=_PYRAMID["num_classes"],
                img_size=size,
            )
        ).eval()
    narrow = {"inner_dim": 12} if name == "tnt" else {}
    heads = row.num_heads if name == "tnt" else row.stages[0].num_heads
    return make_network(
        row.change(embed_dim=16 * heads, depth=depth, num_classes=10, img_size=size, **narrow)
    ).eval()


def layouts_of(state_dict: dict[str, Tensor]) -> list[Layout]:
    """Returns the different layouts whose fingerprint the names have."""
    found = []
    for layout in (layout for system in SYSTEMS for layout in system.layouts):
        has_all = set(layout.fingerprint) <= state_dict.keys()
        if has_all and layout not in found:
            found.append(layout)
    return found


def load(ours: VisionModel, judge: nn.Module) -> VisionModel:
    """Gives ours the judge's weights, by the one layout that recognises them."""
    (layout,) = layouts_of(judge.state_dict())
    ours.load_state_dict(layout.to_ours(judge.state_dict()), strict=True)
    return ours


def _build(name: str, size: int, depth: int) -> nn.Module:
    if name == "pvt":
        config = PvtConfig(
            image_size=size, hidden_sizes=_WIDTHS, depths=_PYRAMID["depths"], num_labels=10
        )
        return PvtForImageClassification(config)
    if name == "twins":
        return Twins(
            img_size=size,
            embed_dims=tuple(_WIDTHS),
            num_heads=(1, 2, 5, 8),
            mlp_ratios=(8, 8, 4, 4),
            sr_ratios=(8, 4, 2, 1),
            **_PYRAMID,
        )
    common = {"img_size": size, "num_classes": 10, "depth": depth}
    if name == "tnt":
        return TimmTNT(**common, embed_dim=96, inner_dim=12, num_heads_outer=6, num_heads_inner=4)
    heads = 6 if name.startswith("vit") else 3
    kind = VisionTransformerDistilled if name == "deit_distilled" else VisionTransformer
    return kind(
        **common,
        patch_size=32 if name == "vit_32" else 16,
        embed_dim=16 * heads,
        num_heads=heads,
        dynamic_img_size=True,
    )
