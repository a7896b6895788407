"""Twins-PCPVT (Chu et al., NeurIPS 2021, arXiv 2104.13840): PVT's pyramid with CPVT's encoding."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cvt.systems.pvt import DIMS, HEADS, MLP_RATIOS, REDUCTIONS, pyramid_row
from cvt.systems.renaming import linear, reduced_block_rules, rename
from cvt.systems.system import Facts, Layout, System

if TYPE_CHECKING:
    from torch import Tensor

_RULES = (
    linear(r"patch_embeds\.(\d+)\.(proj|norm)", r"stages.\1.embed.\2"),
    linear(r"pos_block\.(\d+)\.proj\.0", r"stages.\1.pegs.0.conv"),
    *reduced_block_rules(r"blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    linear("(norm|head)", r"\1"),
)


def _to_ours(state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return rename(state_dict, _RULES, "timm's Twins-PCPVT")


TWINS = System(
    name="Twins",
    paper="Chu et al., NeurIPS 2021, arXiv 2104.13840",
    rows={
        "twins_pcpvt_small": pyramid_row(
            DIMS, HEADS, (3, 4, 6, 3), MLP_RATIOS, REDUCTIONS, is_twins=True
        )
    },
    facts={"twins_pcpvt_small": Facts(num_params=24_106_216)},
    layouts=(
        Layout(
            name="timm",
            fingerprint=(
                "patch_embeds.0.proj.weight",
                "pos_block.0.proj.0.weight",
                "blocks.0.0.attn.q.weight",
            ),
            to_ours=_to_ours,
        ),
    ),
    licence="Apache-2.0 (Meituan-AutoML/Twins)",
    is_in_timm=True,
)
