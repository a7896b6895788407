"""CPVT (Chu et al., arXiv 2102.10882): DeiT's rows without a table, with encoding generators."""

from cvt.parts.spec import BackboneSpec
from cvt.systems.system import Facts, System
from cvt.systems.vit import NANO, SIZES, patch_row, plain_row

_README = "Meituan-AutoML/CPVT, README"
_NOTE = "depthwise generators add {} parameters each; the README's {} does not follow"


def _row(size: str, pegs: int, *, has_token: bool = True) -> BackboneSpec:
    """Generators stand behind the first `pegs` blocks; without a class token the mean is taken."""
    stage = patch_row(*SIZES[size], cls_token=has_token, pos_embed="conditional", peg_depth=pegs)
    return plain_row(stage, global_pool="token" if has_token else "avg")


CPVT = System(
    name="CPVT",
    paper="Chu et al., ICLR 2023, arXiv 2102.10882",
    rows={
        **{f"cpvt_{size}": _row(size, 1) for size in ("tiny", "small", "base")},
        **{f"cpvt_{size}_peg5": _row(size, 5) for size in ("tiny", "small", "base")},
        **{
            f"cpvt_{size}_gap": _row(size, 5, has_token=False) for size in ("tiny", "small", "base")
        },
        "cpvt_nano_32": plain_row(
            patch_row(*NANO, patch=4, pos_embed="conditional"), size=32, num_classes=10
        ),
    },
    facts={
        "cpvt_tiny": Facts(
            num_params=5_681_512,
            published_params=6,
            top1=72.4,
            source="paper, as quoted by the facts of later comparisons; " + _README,
        ),
        "cpvt_tiny_peg5": Facts(
            num_params=5_689_192, published_params=6, top1=73.4, source=_README
        ),
        "cpvt_tiny_gap": Facts(num_params=5_689_000, published_params=6, top1=74.9, source=_README),
        "cpvt_small": Facts(
            num_params=21_978_856,
            published_params=23,
            source=_README,
            note=_NOTE.format("3,840", 23),
        ),
        "cpvt_small_peg5": Facts(
            num_params=21_994_216,
            published_params=23,
            top1=80.5,
            source=_README,
            note=_NOTE.format("3,840", 23),
        ),
        "cpvt_small_gap": Facts(
            num_params=21_993_832,
            published_params=23,
            top1=81.5,
            source=_README,
            note=_NOTE.format("3,840", 23),
        ),
        "cpvt_base": Facts(
            num_params=86_424_040,
            published_params=88,
            source=_README,
            note=_NOTE.format("7,680", 88),
        ),
        "cpvt_base_peg5": Facts(
            num_params=86_454_760,
            published_params=88,
            top1=82.3,
            source=_README,
            note=_NOTE.format("7,680", 88),
        ),
        "cpvt_base_gap": Facts(num_params=86_453_992),
    },
)
