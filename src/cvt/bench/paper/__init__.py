"""The tables of CvT's paper: counted, or trained again at a small scale, beside what is printed."""

from cvt.bench.paper.ablation import Ablation, contenders_of, make_ablation, usual_bases
from cvt.bench.paper.results import (
    NAME,
    AblationResult,
    Difference,
    VariantResult,
    compare_signs,
    count,
    judge,
    legend,
    paired_difference,
    write_report,
)
from cvt.bench.paper.sheets import sheet, table_1, table_2, table_3

__all__ = [
    "NAME",
    "Ablation",
    "AblationResult",
    "Difference",
    "VariantResult",
    "compare_signs",
    "contenders_of",
    "count",
    "judge",
    "legend",
    "make_ablation",
    "paired_difference",
    "sheet",
    "table_1",
    "table_2",
    "table_3",
    "usual_bases",
    "write_report",
]
