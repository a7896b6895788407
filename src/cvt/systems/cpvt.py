"""CPVT (Chu et al., arXiv 2102.10882): DeiT's rows without a table, with encoding generators."""

from functools import partial

from cvt.systems.system import Facts, System
from cvt.systems.vit import NANO, SIZES, plain_row

_README = "Meituan-AutoML/CPVT, README"
_NOTE = "depthwise generators add {} parameters each; the README's {} does not follow"
_SIZES = ("tiny", "small", "base")

_facts = partial(Facts, source=_README)
_small = partial(_facts, note=_NOTE.format("3,840", 23))
_base = partial(_facts, note=_NOTE.format("7,680", 88))

# Generators stand behind the first `peg_depth` blocks.
_row = partial(plain_row, pos_embed="conditional")

CPVT = System(
    name="CPVT",
    paper="Chu et al., ICLR 2023, arXiv 2102.10882",
    rows={
        **{f"cpvt_{size}": _row(*SIZES[size]) for size in _SIZES},
        **{f"cpvt_{size}_peg5": _row(*SIZES[size], peg_depth=5) for size in _SIZES},
        **{
            f"cpvt_{size}_gap": _row(*SIZES[size], peg_depth=5, global_pool="avg")
            for size in _SIZES
        },
        "cpvt_nano_32": _row(*NANO, patch=4, size=32, num_classes=10),
    },
    facts={
        "cpvt_tiny": Facts(
            5_681_512,
            published_params=6,
            top1=72.4,
            source=f"paper, as quoted by the facts of later comparisons; {_README}",
        ),
        "cpvt_tiny_peg5": _facts(5_689_192, None, 6, None, 73.4),
        "cpvt_tiny_gap": _facts(5_689_000, None, 6, None, 74.9),
        "cpvt_small": _small(21_978_856, None, 23),
        "cpvt_small_peg5": _small(21_994_216, None, 23, None, 80.5),
        "cpvt_small_gap": _small(21_993_832, None, 23, None, 81.5),
        "cpvt_base": _base(86_424_040, None, 88),
        "cpvt_base_peg5": _base(86_454_760, None, 88, None, 82.3),
        "cpvt_base_gap": Facts(86_453_992),
    },
)
