"""Twins-PCPVT (Chu et al., NeurIPS 2021, arXiv 2104.13840): PVT's pyramid with CPVT's encoding."""

from cvt.systems.pvt import DIMS, HEADS, MLP_RATIOS, REDUCTIONS, pyramid_row
from cvt.systems.system import Facts, System

TWINS = System(
    name="Twins",
    paper="Chu et al., NeurIPS 2021, arXiv 2104.13840",
    rows={
        "twins_pcpvt_small": pyramid_row(
            DIMS, HEADS, (3, 4, 6, 3), MLP_RATIOS, REDUCTIONS, is_twins=True
        )
    },
    facts={"twins_pcpvt_small": Facts(num_params=24_106_216)},
    licence="Apache-2.0 (Meituan-AutoML/Twins)",
    is_in_timm=True,
)
