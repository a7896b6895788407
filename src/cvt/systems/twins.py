"""Twins-PCPVT (Chu et al., NeurIPS 2021, arXiv 2104.13840): PVT's pyramid with CPVT's encoding."""

from functools import partial

from cvt.systems.pvt import pyramid_row
from cvt.systems.system import Facts, Layout, System, linear, reduced_block_rules

_DEPTHS = {"small": (3, 4, 6, 3), "base": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
_RULES = (
    linear(r"patch_embeds\.(\d+)\.(proj|norm)", r"stages.\1.embed.\2"),
    linear(r"pos_block\.(\d+)\.proj\.0", r"stages.\1.pegs.0.conv"),
    *reduced_block_rules(r"blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    linear("(norm|head)", r"\1"),
)

_facts = partial(Facts, source="Meituan-AutoML/Twins 1930e44, README")
_NOTE = "theirs leave out attention's two products, {} M multiply-accumulates"
_LARGE = _NOTE.format(311) + "; 60.9 M is cut, not rounded"

TWINS = System(
    name="Twins",
    paper="Chu et al., NeurIPS 2021, arXiv 2104.13840",
    rows={
        f"twins_pcpvt_{size}": pyramid_row(depths, is_twins=True)
        for size, depths in _DEPTHS.items()
    },
    facts={
        "twins_pcpvt_small": _facts(24_106_216, 3.809, 24.1, 3.7, 81.2, note=_NOTE.format(143)),
        "twins_pcpvt_base": _facts(43_828_456, 6.653, 43.8, 6.4, 82.7, note=_NOTE.format(216)),
        "twins_pcpvt_large": _facts(60_989_672, 9.808, 60.9, 9.5, 83.1, note=_LARGE),
    },
    layouts=(
        Layout(
            name="timm",
            fingerprint=(
                "patch_embeds.0.proj.weight",
                "pos_block.0.proj.0.weight",
                "blocks.0.0.attn.q.weight",
            ),
            of="timm's Twins-PCPVT",
            rules=_RULES,
        ),
    ),
    licence="Apache-2.0 (Meituan-AutoML/Twins)",
    is_in_timm=True,
)
