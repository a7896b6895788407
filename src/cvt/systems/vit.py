"""ViT (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929) as rows."""

from typing import Any

from cvt.parts.spec import BackboneSpec, Pool, Position, StageSpec
from cvt.systems.system import HALF, Facts, Layout, Rule, System, block_rules, linear


def plain_row(
    embed_dim: int,
    depth: int,
    num_heads: int,
    *,
    patch: int = 16,
    size: int = 224,
    pos_embed: Position = "table",
    peg_depth: int = 1,
    global_pool: Pool = "token",
    **whole: Any,
) -> BackboneSpec:
    """Returns ViT's one stage, with what ViT and its heirs have in common.

    Patches, a class token unless the mean is taken, a position table, linear projections; `whole`
    are other fields of the network.
    """
    stage = StageSpec(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        embed_kernel=patch,
        embed_stride=patch,
        embed_padding=0,
        embed_norm=False,
        projection="linear",
        cls_token=global_pool == "token",
        pos_embed=pos_embed,
        peg_depth=peg_depth,
    )
    return BackboneSpec(
        stages=(stage,),
        img_size=(size, size),
        global_pool=global_pool,
        act_layer="gelu",
        norm_eps=1e-6,
        attn_scale="head_dim",
        drop_path_schedule="network",
        **whole,
    )


# Width, depth, heads (paper, Table 1; Ti and S: DeiT, arXiv 2012.12877, Table 1).
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}

# Ours, not a paper's: 8x8 tokens of a 32-pixel image, half a million parameters.
NANO = (96, 5, 3)

# Pixels of a patch and of the image.
_VARIANTS = {
    "tiny": ((16, 224),),
    "small": ((16, 224), (32, 224)),
    "base": ((8, 224), (16, 224), (32, 224), (16, 384)),
    "large": ((16, 224), (32, 224), (16, 384)),
    "huge": ((14, 224),),
}

_TORCHVISION = "torchvision's weight metadata (IMAGENET1K_V1, from scratch at 224)"
_SCRATCH = "CvT, arXiv 2103.15808, Table 3 (from scratch on ImageNet-1k at 384)"
_PAPER = "paper, Table 1 (parameters)"
_TRUNCATED = "the paper cuts to whole millions instead of rounding"
_LARGE = "the paper's 307 is unexplained; with patches of 32 pixels the count is 306.5"

_RULES = (
    Rule(r"(cls_token|dist_token)", (r"stages.0.\1",)),
    Rule("pos_embed", ("stages.0.pos_embed.table",)),
    linear(r"patch_embed\.proj", "stages.0.embed.proj"),
    *block_rules(r"blocks\.(\d+)\.", r"stages.0.blocks.\1."),
    linear("(norm|head|head_dist)", r"\1"),
)


# timm's and facebookresearch/deit's names, for a table with one prefix row or with two.
LAYOUT = Layout(
    name="timm",
    fingerprint=("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    of="timm's ViT or DeiT",
    rules=_RULES,
)

VIT = System(
    name="ViT",
    paper="Dosovitskiy et al., ICLR 2021, arXiv 2010.11929",
    rows={
        **{
            f"vit_{size}_patch{patch}_{side}": plain_row(*SIZES[size], patch=patch, size=side)
            for size, variants in _VARIANTS.items()
            for patch, side in variants
        },
        "vit_nano_32": plain_row(*NANO, patch=4, size=32, num_classes=10),
    },
    facts={
        "vit_tiny_patch16_224": Facts(5_717_416, 1.254),
        "vit_small_patch16_224": Facts(22_050_664, 4.599),
        "vit_small_patch32_224": Facts(22_878_952),
        "vit_base_patch8_224": Facts(86_576_872),
        "vit_base_patch16_224": Facts(
            86_567_656, 17.564, 86, None, 81.07, source=f"{_PAPER}; {_TORCHVISION}", note=_TRUNCATED
        ),
        "vit_base_patch32_224": Facts(88_224_232, top1=75.91, source=_TORCHVISION),
        "vit_base_patch16_384": Facts(
            86_859_496, 55.484, 86, 55.5, 77.9, source=_SCRATCH, note=_TRUNCATED
        ),
        "vit_large_patch16_224": Facts(
            304_326_632, 61.555, 307, None, 79.66, source=f"{_PAPER}; {_TORCHVISION}", note=_LARGE
        ),
        "vit_large_patch32_224": Facts(306_535_400, top1=76.97, source=_TORCHVISION),
        "vit_large_patch16_384": Facts(
            304_715_752, 191.066, 307, 191.1, 76.5, source=_SCRATCH, note=_LARGE
        ),
        "vit_huge_patch14_224": Facts(632_045_800, published_params=632, source=_PAPER),
    },
    layouts=(LAYOUT,),
    licence="Apache-2.0 (google-research/vision_transformer, timm)",
    mean=HALF,
    std=HALF,
    is_in_timm=True,
)
