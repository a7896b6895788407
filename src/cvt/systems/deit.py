"""DeiT (Touvron et al., ICML 2021, arXiv 2012.12877) as rows: ViT's, and a distillation token."""

from functools import partial

from cvt.systems.system import Facts, System
from cvt.systems.vit import LAYOUT, NANO, SIZES, plain_row

_README = "facebookresearch/deit 7e160fe, README_deit.md"
_TRUNCATED = "the README cuts to whole millions instead of rounding"
_TABLE = "CvT, arXiv 2103.15808, Table 3"
_facts = partial(Facts, source=_README)

DEIT = System(
    name="DeiT",
    paper="Touvron et al., ICML 2021, arXiv 2012.12877",
    rows={
        **{
            f"deit_{size}{tag}_patch16_{side}": plain_row(
                *SIZES[size], size=side, distilled=bool(tag)
            )
            for side in (224, 384)
            for tag in ("", "_distilled")
            for size in ("tiny", "small", "base")
            if side == 224 or size == "base"
        },
        "deit_nano_32": plain_row(*NANO, patch=4, size=32, num_classes=10, distilled=True),
    },
    facts={
        "deit_tiny_patch16_224": _facts(5_717_416, 1.254, 5, None, 72.2, note=_TRUNCATED),
        "deit_small_patch16_224": Facts(
            22_050_664, 4.599, 22, 4.6, 79.8, source=f"{_TABLE} (DeiT's README has 79.9)"
        ),
        "deit_base_patch16_224": Facts(
            86_567_656, 17.564, 86, 17.6, 81.8, source=f"{_TABLE}; {_README}", note=_TRUNCATED
        ),
        "deit_base_patch16_384": _facts(86_859_496, 55.484, 87, None, 82.9),
        "deit_tiny_distilled_patch16_224": _facts(5_910_800, 1.261, 6, None, 74.5),
        "deit_small_distilled_patch16_224": _facts(22_436_432, None, 22, None, 81.2),
        "deit_base_distilled_patch16_224": _facts(87_338_192, None, 87, None, 83.4),
        "deit_base_distilled_patch16_384": Facts(
            87_630_032, None, 88, None, 85.2, source=f"{_README} (1000 epochs)"
        ),
    },
    layouts=(LAYOUT,),
    licence="Apache-2.0 (facebookresearch/deit)",
    is_in_timm=True,
)
