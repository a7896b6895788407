"""CvT (Wu et al., ICCV 2021, arXiv 2103.15808) as rows, and rows of our own for small machines."""

import re
from functools import partial
from typing import Any

from cvt.parts.spec import BackboneSpec, StageSpec
from cvt.systems.system import Facts, Layout, Rule, System, linear


def _published(
    dims: tuple[int, ...], heads: tuple[int, ...], depths: tuple[int, ...], drop_path_rate: float
) -> BackboneSpec:
    """The three published networks differ in these four columns only (paper Table 2).

    Source: the YAML files of microsoft/CvT f851e68, experiments/imagenet/cvt. The stem's padding
    is 2, not the 3 that would be usual for its kernel of 7: the weights were trained so.
    """
    own: list[dict[str, Any]] = [
        {"embed_kernel": 7, "embed_stride": 4, "embed_padding": 2},
        {},
        {"cls_token": True, "drop_path_rate": drop_path_rate},
    ]
    return BackboneSpec(
        stages=tuple(
            StageSpec(embed_dim=dim, num_heads=head, depth=depth, **more)
            for dim, head, depth, more in zip(dims, heads, depths, own, strict=True)
        )
    )


def _ours(
    dims: tuple[int, ...],
    heads: tuple[int, ...],
    depths: tuple[int, ...],
    stem: dict[str, Any],
    img_size: int,
    drop_path_rate: float = 0.0,
) -> BackboneSpec:
    """Ours, not the paper's: the same blocks, narrower, for small images and small machines.

    Mean pooling takes the class token's place, and the attention scale is the usual one, since
    there are no published weights to be true to.
    """
    stages = [
        StageSpec(
            embed_dim=dim,
            num_heads=head,
            depth=depth,
            drop_path_rate=drop_path_rate,
            **({} if index else stem),
        )
        for index, (dim, head, depth) in enumerate(zip(dims, heads, depths, strict=True))
    ]
    return BackboneSpec(
        stages=tuple(stages),
        img_size=(img_size, img_size),
        global_pool="avg",
        attn_scale="head_dim",
        num_classes=10 if img_size == 32 else 1000,
    )


# A stem of 7x7 at stride 4 would leave 8x8 tokens of a 32-pixel image, and its last stage 2x2.
_HALVES = {"embed_stride": 2}
_KEEPS = {"embed_stride": 1}
_QUARTERS = {"embed_kernel": 7, "embed_stride": 4, "embed_padding": 3}

ROWS: dict[str, BackboneSpec] = {
    "cvt_13": _published((64, 192, 384), (1, 3, 6), (1, 2, 10), 0.1),
    "cvt_21": _published((64, 192, 384), (1, 3, 6), (1, 4, 16), 0.1),
    "cvt_w24": _published((192, 768, 1024), (3, 12, 16), (2, 2, 20), 0.3),
    "cvt_nano_32": _ours((32, 64, 128), (1, 2, 4), (1, 1, 2), _HALVES, 32),
    "cvt_mini_32": _ours((64, 128, 256), (2, 4, 8), (2, 3, 3), _KEEPS, 32, 0.1),
    "cvt_nano_96": _ours((32, 64, 128), (1, 2, 4), (1, 2, 6), _QUARTERS, 96),
    "cvt_micro_96": _ours((48, 96, 192), (1, 2, 4), (1, 2, 6), _QUARTERS, 96),
    "cvt_mini_96": _ours((64, 128, 256), (1, 2, 4), (1, 2, 6), _QUARTERS, 96),
}

# Every module's name: ours, microsoft/CvT's (f851e68, lib/models/cls_cvt.py) and transformers'
# (models/cvt), `{}` for the number of a stage or block.
_EMBED = "cvt.encoder.stages.{}.embedding.convolution_embeddings"
_CONV = "convolution_projection_{}.convolution_projection"
_THEIR_ATTENTION = "cvt.encoder.stages.{}.layers.{}.attention.attention"
_NAMES = (
    ("norm", "norm", "layernorm"),
    ("head", "head", "classifier"),
    ("stages.{}.embed.proj", "stage{}.patch_embed.proj", f"{_EMBED}.projection"),
    ("stages.{}.embed.norm", "stage{}.patch_embed.norm", f"{_EMBED}.normalization"),
    *(
        (f"stages.{{}}.blocks.{{}}.{ours}", f"stage{{}}.blocks.{{}}.{ours}", theirs)
        for ours, theirs in (
            ("norm1", "cvt.encoder.stages.{}.layers.{}.layernorm_before"),
            ("norm2", "cvt.encoder.stages.{}.layers.{}.layernorm_after"),
            ("attn.proj", "cvt.encoder.stages.{}.layers.{}.attention.output.dense"),
            ("mlp.fc1", "cvt.encoder.stages.{}.layers.{}.intermediate.dense"),
            ("mlp.fc2", "cvt.encoder.stages.{}.layers.{}.output.dense"),
        )
    ),
    *(
        (
            f"stages.{{}}.blocks.{{}}.attn.{letter}.{ours}",
            f"stage{{}}.blocks.{{}}.attn.{official.format(letter)}",
            f"{_THEIR_ATTENTION}.{theirs.format(word)}",
        )
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value"))
        for ours, official, theirs in (
            ("conv", "conv_proj_{}.conv", f"{_CONV}.convolution"),
            ("bn", "conv_proj_{}.bn", f"{_CONV}.normalization"),
            ("linear", "proj_{}", "projection_{}"),
        )
    ),
)
_TOKEN = ("stages.{}.cls_token", "stage{}.cls_token", "cvt.encoder.stages.{}.cls_token")


def _rules(start: int, end: int) -> tuple[Rule, ...]:
    """From one column of the table to another; a bare `CvtModel` has no `cvt.` in front."""

    def pattern(name: str) -> str:
        numbered = re.escape(name).replace(r"\{\}", r"(\d+)")
        return re.sub(r"^cvt\\\.", r"(?:cvt\\.)?", numbered)

    def target(name: str) -> str:
        return name.replace("{}", r"\1", 1).replace("{}", r"\2", 1)

    token = Rule(pattern(_TOKEN[start]), (target(_TOKEN[end]),))
    return (token, *(linear(pattern(row[start]), target(row[end])) for row in _NAMES))


_FIRST = "encoder.stages.0.embedding.convolution_embeddings.projection.weight"
_LAYOUTS = (
    Layout(
        name="microsoft",
        of="microsoft/CvT",
        fingerprint=("stage0.patch_embed.proj.weight",),
        rules=_rules(1, 0),
        back=_rules(0, 1),
    ),
    *(
        Layout(
            name="transformers",
            of="transformers' CvT",
            fingerprint=(first,),
            rules=_rules(2, 0),
            back=_rules(0, 2),
        )
        # The second is a bare `CvtModel`, which lacks norm and head.
        for first in (f"cvt.{_FIRST}", _FIRST)
    ),
)

PAPER_ROWS = ("cvt_13", "cvt_21", "cvt_w24")

_NOTE = "the paper's small differences to the reference code's counts are unexplained"
_W24 = "paper, Table 2 (its 87.7 % is at 384 pixels after ImageNet-22k)"
_facts = partial(Facts, source="paper, Tables 2 and 3", note=_NOTE)

CVT = System(
    name="CvT",
    paper="Wu et al., ICCV 2021, arXiv 2103.15808",
    rows=ROWS,
    facts={
        "cvt_13": _facts(19_997_480, 4.566, 19.98, 4.53, 81.6),
        "cvt_21": _facts(31_622_696, 7.178, 31.54, 7.13, 82.5),
        "cvt_w24": Facts(277_196_392, 60.917, 276.7, 60.86, source=_W24, note=_NOTE),
    },
    layouts=_LAYOUTS,
    licence="MIT (microsoft/CvT), Apache-2.0 (hub cards)",
    crop_pct=0.875,
)
