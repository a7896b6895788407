"""TNT (Han et al., NeurIPS 2021, arXiv 2103.00112) as rows."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from cvt.errors import UserError
from cvt.parts.spec import TNTSpec
from cvt.systems.system import HALF, Facts, Layout, Rule, System, linear

if TYPE_CHECKING:
    from torch import Tensor

_facts = partial(Facts, source="huawei-noah/CV-Backbones 25531f7, tnt_pytorch README")
_UNUSED = (
    "the authors' code also carries a frozen tensor that nothing reads (outer_tokens, "
    "125,440 numbers)"
)


def _attention_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Queries and keys come from one linear map, values from another."""
    return (
        linear(rf"{theirs}\.qk", f"{ours}.q.linear", f"{ours}.k.linear"),
        linear(rf"{theirs}\.v", f"{ours}.v.linear"),
        linear(rf"{theirs}\.proj", f"{ours}.proj"),
    )


_BLOCK = r"blocks\.(\d+)\."
_SHARED = (
    Rule("cls_token", ("cls_token",)),
    linear("proj", "patch_embed.proj"),
    linear(_BLOCK + "proj", r"blocks.\1.fold.proj"),
    linear("(norm|head)", r"\1"),
)

_TIMM = (
    *_SHARED,
    Rule("patch_pos", ("pos_embed.table",)),
    # (1, c, H, W) there, (1, H*W, c) here.
    Rule("pixel_pos", ("word_pos.table",), lambda table: table.flatten(2).transpose(1, 2)),
    linear(r"pixel_embed\.proj", "word_embed.proj"),
    linear(r"norm([12])_proj", r"patch_embed.norm\1"),
    linear(_BLOCK + "norm_in", r"blocks.\1.inner.norm1"),
    linear(_BLOCK + "norm_mlp_in", r"blocks.\1.inner.norm2"),
    linear(_BLOCK + r"mlp_in\.(fc[12])", r"blocks.\1.inner.mlp.\2"),
    linear(_BLOCK + r"norm([12])_proj", r"blocks.\1.fold.norm\2"),
    linear(_BLOCK + "norm_out", r"blocks.\1.outer.norm1"),
    linear(_BLOCK + "norm_mlp", r"blocks.\1.outer.norm2"),
    linear(_BLOCK + r"mlp\.(fc[12])", r"blocks.\1.outer.mlp.\2"),
    *_attention_rules(_BLOCK + "attn_in", r"blocks.\1.inner.attn"),
    *_attention_rules(_BLOCK + "attn_out", r"blocks.\1.outer.attn"),
)

_AUTHORS = (
    *_SHARED,
    Rule("outer_tokens"),  # frozen, and nothing reads it
    Rule("outer_pos", ("pos_embed.table",)),
    Rule("inner_pos", ("word_pos.table",)),
    linear(r"patch_embed\.proj", "word_embed.proj"),
    linear(r"proj_norm([12])", r"patch_embed.norm\1"),
    linear(_BLOCK + r"proj_norm([12])", r"blocks.\1.fold.norm\2"),
    linear(_BLOCK + r"(inner|outer)_norm([12])", r"blocks.\1.\2.norm\3"),
    linear(_BLOCK + r"(inner|outer)_mlp\.(fc[12])", r"blocks.\1.\2.mlp.\3"),
    *_attention_rules(_BLOCK + r"(inner|outer)_attn", r"blocks.\1.\2.attn"),
)


def _check_version(state_dict: "Mapping[str, Tensor]") -> None:
    if "blocks.0.proj.bias" in state_dict:
        raise UserError(
            "Got the TNT of the first arXiv version (timm's tnt_s_legacy), whose map from words "
            "to patches is another one, expected the published TNT; take timm's "
            "tnt_s_patch16_224 or tnt_b_patch16_224."
        )


TNT = System(
    name="TNT",
    paper="Han et al., NeurIPS 2021, arXiv 2103.00112",
    rows={
        "tnt_s_patch16_224": TNTSpec(
            embed_dim=384, depth=12, num_heads=6, inner_dim=24, inner_heads=4
        ),
        "tnt_b_patch16_224": TNTSpec(
            embed_dim=640, depth=12, num_heads=10, inner_dim=40, inner_heads=4
        ),
        # Ours, not the paper's: 8x8 patches of a 32-pixel image with 2x2 words each.
        "tnt_nano_32": TNTSpec(
            embed_dim=96,
            depth=4,
            num_heads=3,
            inner_dim=24,
            inner_heads=2,
            patch_size=4,
            inner_kernel=3,
            inner_stride=2,
            img_size=(32, 32),
            num_classes=10,
        ),
    },
    facts={
        "tnt_s_patch16_224": _facts(23_768_584, 5.217, 23.8, 5.2, 81.5),
        "tnt_b_patch16_224": _facts(65_428_680, 14.049, 65.6, 14.1, 82.9, note=_UNUSED),
    },
    layouts=(
        Layout(
            name="timm",
            of="timm's TNT",
            fingerprint=("patch_pos", "pixel_pos"),
            rules=_TIMM,
            check=_check_version,
        ),
        Layout(
            name="authors",
            of="the authors' TNT",
            fingerprint=("outer_pos", "inner_pos"),
            rules=_AUTHORS,
            check=_check_version,
        ),
    ),
    licence="Apache-2.0 (huawei-noah/CV-Backbones)",
    mean=HALF,
    std=HALF,
    is_in_timm=True,
)
