"""T2T-ViT (Yuan et al., ICCV 2021, arXiv 2101.11986) as rows of three stages, two of them empty.

Stages 1 and 2 are the two soft splits with their token layers; the third split and its linear map
are a convolution of kernel 3 and stride 2, behind which the plain blocks stand.
"""

from functools import partial
from typing import Any

from cvt.parts.spec import BackboneSpec, Embed, StageSpec
from cvt.systems.system import Facts, Layout, Rule, System, block_rules, linear


def _row(
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    embed: Embed,
    *,
    token_dim: int = 64,
    windows: tuple[tuple[int, int, int], ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1)),
    size: int = 224,
    num_classes: int = 1000,
) -> BackboneSpec:
    """`windows` are the kernel, stride and padding of the three splits."""
    splits: list[dict[str, Any]] = [
        {"embed_kernel": kernel, "embed_stride": stride, "embed_padding": padding}
        for kernel, stride, padding in windows
    ]
    first, second, third = splits
    stem: dict[str, Any] = {"embed_dim": token_dim, "depth": 0, "num_heads": 1, "embed": embed}
    return BackboneSpec(
        stages=(
            StageSpec(**stem, **first, projection="linear"),
            StageSpec(**stem, **second, projection="linear"),
            StageSpec(
                embed_dim=embed_dim,
                depth=depth,
                num_heads=num_heads,
                **third,
                embed_norm=False,
                mlp_ratio=mlp_ratio,
                projection="linear",
                qkv_bias=False,
                cls_token=True,
                pos_embed="sinusoid",
            ),
        ),
        img_size=(size, size),
        num_classes=num_classes,
        act_layer="gelu",
        attn_scale="head_dim",
        pos_interpolation="bicubic_no_antialias",
        drop_path_schedule="network",
    )


# Width, depth, heads, MLP ratio (paper, Table 2; yitu-opensource/T2T-ViT 0f63dc9).
_SIZES = {
    7: (256, 7, 4, 2.0),
    10: (256, 10, 4, 2.0),
    12: (256, 12, 4, 2.0),
    14: (384, 14, 6, 3.0),
    19: (448, 19, 7, 3.0),
    24: (512, 24, 8, 3.0),
}

_facts = partial(Facts, source="yitu-opensource/T2T-ViT 0f63dc9, README")
_UNEXPLAINED = "the README's 13.8 is unexplained; its other figures agree"


def _token_layer_rules(number: int) -> tuple[Rule, ...]:
    """Either form; the performer's fused map has keys first, and its MLP is numbered."""
    theirs, ours = rf"tokens_to_token\.attention{number}\.", f"stages.{number - 1}.embed."
    return (
        Rule(rf"{theirs}w", (f"{ours}w",)),
        linear(rf"{theirs}kqv", *(ours + each for each in "kqv")),
        linear(rf"{theirs}attn\.qkv", *(ours + each for each in "qkv")),
        linear(rf"{theirs}(?:attn\.)?proj", f"{ours}proj"),
        linear(rf"{theirs}(norm[12]|mlp\.fc[12])", rf"{ours}\1"),
        linear(rf"{theirs}mlp\.0", f"{ours}mlp.fc1"),
        linear(rf"{theirs}mlp\.2", f"{ours}mlp.fc2"),
    )


_RULES = (
    *_token_layer_rules(1),
    *_token_layer_rules(2),
    # A linear map (d, c*3*3) over the windows of `unfold` there, a kernel (d, c, 3, 3) here.
    Rule(
        r"tokens_to_token\.project\.weight",
        ("stages.2.embed.proj.weight",),
        lambda weight: weight.reshape(weight.shape[0], -1, 3, 3),
    ),
    Rule(r"tokens_to_token\.project\.bias", ("stages.2.embed.proj.bias",)),
    Rule("cls_token", ("stages.2.cls_token",)),
    Rule("pos_embed", ("stages.2.pos_embed.table",)),
    *block_rules(r"blocks\.(\d+)\.", r"stages.2.blocks.\1."),
    linear("(norm|head)", r"\1"),
)


T2T = System(
    name="T2T",
    paper="Yuan et al., ICCV 2021, arXiv 2101.11986",
    rows={
        **{f"t2t_vit_{depth}": _row(*size, "t2t_performer") for depth, size in _SIZES.items()},
        "t2t_vit_14_resnext": _row(384, 14, 32, 3.0, "t2t_performer"),
        "t2t_vit_14_wide": _row(768, 4, 12, 3.0, "t2t_performer"),
        **{f"t2t_vit_t_{depth}": _row(*_SIZES[depth], "t2t") for depth in (14, 19, 24)},
        # Ours, not the paper's: 8x8 tokens of a 32-pixel image, half a million parameters.
        "t2t_nano_32": _row(
            96,
            5,
            3,
            4.0,
            "t2t_performer",
            token_dim=32,
            windows=((3, 2, 1), (3, 2, 1), (3, 1, 1)),
            size=32,
            num_classes=10,
        ),
    },
    facts={
        "t2t_vit_7": _facts(4_310_222, 1.147, 4.3, 1.1, 71.7, num_frozen=54_528),
        "t2t_vit_10": _facts(5_889_230, 1.516, 5.9, 1.5, 75.2, num_frozen=54_528),
        "t2t_vit_12": _facts(6_941_902, 1.763, 6.9, 1.8, 76.5, num_frozen=54_528),
        "t2t_vit_14": _facts(21_545_550, 4.783, 21.5, 4.8, 81.5, num_frozen=79_744),
        "t2t_vit_19": _facts(39_177_422, 8.480, 39.2, 8.5, 81.9, num_frozen=92_352),
        "t2t_vit_24": _facts(
            64_105_934, 13.662, 64.1, 13.8, 82.3, num_frozen=104_960, note=_UNEXPLAINED
        ),
        "t2t_vit_14_resnext": Facts(21_545_550, 4.783, num_frozen=79_744),
        "t2t_vit_14_wide": Facts(25_156_302, 5.229, num_frozen=155_392),
        "t2t_vit_t_14": _facts(21_541_070, 6.089, 21.5, 6.1, 81.7, num_frozen=75_648),
        "t2t_vit_t_19": _facts(39_172_942, 9.785, 39.2, 9.8, 82.4, num_frozen=88_256),
        "t2t_vit_t_24": _facts(64_101_454, 14.967, 64.1, 15.0, 82.6, num_frozen=100_864),
    },
    layouts=(
        Layout(
            name="authors",
            fingerprint=("tokens_to_token.project.weight", "pos_embed"),
            of="the authors' T2T-ViT",
            rules=_RULES,
        ),
    ),
    licence="Clear BSD (yitu-opensource/T2T-ViT)",
)
