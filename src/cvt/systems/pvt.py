"""PVT (Wang et al., ICCV 2021, arXiv 2102.12122), version 1, as rows of four stages."""

from functools import partial

from cvt.parts.spec import BackboneSpec, StageSpec
from cvt.systems.system import Facts, Layout, Rule, System, linear, reduced_block_rules

DIMS, HEADS = (64, 128, 320, 512), (1, 2, 5, 8)
MLP_RATIOS, REDUCTIONS = (8.0, 8.0, 4.0, 4.0), (8, 4, 2, 1)

_facts = partial(Facts, source="whai362/PVT 57e2dfa, classification README")


def pyramid_row(
    depths: tuple[int, ...],
    *,
    dims: tuple[int, ...] = DIMS,
    heads: tuple[int, ...] = HEADS,
    mlp_ratios: tuple[float, ...] = MLP_RATIOS,
    reductions: tuple[int, ...] = REDUCTIONS,
    stem: int = 4,
    size: int = 224,
    is_twins: bool = False,
    num_classes: int = 1000,
) -> BackboneSpec:
    """Returns PVT's pyramid: patches of `stem` pixels, then of 2, keys and values reduced.

    With a table in every stage and a class token in the last; Twins-PCPVT instead has a position
    encoding generator in every stage and takes the mean.
    """
    last = len(dims) - 1
    columns = zip(dims, heads, depths, mlp_ratios, reductions, strict=True)
    return BackboneSpec(
        stages=tuple(
            StageSpec(
                embed_dim=dim,
                num_heads=head,
                depth=depth,
                embed_kernel=2 if index else stem,
                embed_stride=2 if index else stem,
                embed_padding=0,
                mlp_ratio=mlp_ratio,
                projection="reduction",
                kv_stride=reduction,
                cls_token=index == last and not is_twins,
                pos_embed="conditional" if is_twins else "table",
            )
            for index, (dim, head, depth, mlp_ratio, reduction) in enumerate(columns)
        ),
        img_size=(size, size),
        num_classes=num_classes,
        global_pool="avg" if is_twins else "token",
        act_layer="gelu",
        norm_eps=1e-6,
        attn_scale="head_dim",
        pos_interpolation="bilinear",
        drop_path_schedule="network",
    )


_DEPTHS = {
    "tiny": (2, 2, 2, 2),
    "small": (3, 4, 6, 3),
    "medium": (3, 4, 18, 3),
    "large": (3, 8, 27, 3),
}


def _stage_rules(number: int) -> tuple[Rule, ...]:
    """The authors count stages from 1."""
    ours = f"stages.{number - 1}."
    return (
        linear(rf"patch_embed{number}\.(proj|norm)", rf"{ours}embed.\1"),
        Rule(f"pos_embed{number}", (f"{ours}pos_embed.table",)),
        *reduced_block_rules(rf"block{number}\.(\d+)\.", rf"{ours}blocks.\1."),
    )


_AUTHORS = (
    *(rule for number in (1, 2, 3, 4) for rule in _stage_rules(number)),
    Rule("cls_token", ("stages.3.cls_token",)),
    linear("(norm|head)", r"\1"),
)

_ENTRY = r"(?:pvt\.)?encoder\.patch_embeddings\.(\d+)\."
_BLOCK = r"(?:pvt\.)?encoder\.block\.(\d+)\.(\d+)\."
_OURS = r"stages.\1.blocks.\2."
_TRANSFORMERS = (
    Rule(_ENTRY + "position_embeddings", (r"stages.\1.pos_embed.table",)),
    Rule(_ENTRY + "cls_token", (r"stages.\1.cls_token",)),
    linear(_ENTRY + "projection", r"stages.\1.embed.proj"),
    linear(_ENTRY + "layer_norm", r"stages.\1.embed.norm"),
    linear(_BLOCK + "layer_norm_([12])", _OURS + r"norm\3"),
    linear(_BLOCK + r"attention\.self\.query", _OURS + "attn.q.linear"),
    linear(_BLOCK + r"attention\.self\.key", _OURS + "attn.k.linear"),
    linear(_BLOCK + r"attention\.self\.value", _OURS + "attn.v.linear"),
    linear(_BLOCK + r"attention\.self\.sequence_reduction", _OURS + "attn.reduce.conv"),
    linear(_BLOCK + r"attention\.self\.layer_norm", _OURS + "attn.reduce.norm"),
    linear(_BLOCK + r"attention\.output\.dense", _OURS + "attn.proj"),
    linear(_BLOCK + r"mlp\.dense([12])", _OURS + r"mlp.fc\3"),
    linear(r"(?:pvt\.)?encoder\.layer_norm", "norm"),
    linear("classifier", "head"),
)

_FIRST_TABLE = "encoder.patch_embeddings.0.position_embeddings"

PVT = System(
    name="PVT",
    paper="Wang et al., ICCV 2021, arXiv 2102.12122",
    rows={
        **{f"pvt_{size}": pyramid_row(depths) for size, depths in _DEPTHS.items()},
        # Ours, not the paper's: the grids of cvt_nano_32 on a 32-pixel image.
        "pvt_nano_32": pyramid_row(
            (1, 1, 2),
            dims=(32, 64, 128),
            heads=(1, 2, 4),
            mlp_ratios=(4.0, 4.0, 4.0),
            reductions=(4, 2, 1),
            stem=2,
            size=32,
            num_classes=10,
        ),
    },
    facts={
        "pvt_tiny": _facts(13_229_288, 1.933, 13.2, 1.9, 75.1),
        "pvt_small": _facts(24_485_864, 3.816, 24.5, 3.8, 79.8),
        "pvt_medium": _facts(44_208_104, 6.659, 44.2, 6.7, 81.2),
        "pvt_large": _facts(61_369_320, 9.814, 61.4, 9.8, 81.7),
    },
    layouts=(
        Layout(
            name="authors",
            fingerprint=("pos_embed1", "block1.0.attn.kv.weight"),
            of="the authors' PVT",
            rules=_AUTHORS,
        ),
        *(
            Layout(
                name="transformers",
                of="transformers' PVT",
                fingerprint=(first,),
                rules=_TRANSFORMERS,
            )
            # The second is a bare `PvtModel`, which has no classifier.
            for first in (f"pvt.{_FIRST_TABLE}", _FIRST_TABLE)
        ),
    ),
    licence="Apache-2.0 (whai362/PVT)",
)
