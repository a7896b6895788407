"""DeiT (Touvron et al., ICML 2021, arXiv 2012.12877) as rows: ViT's, and a distillation token."""

from cvt.systems.system import Facts, System
from cvt.systems.vit import LAYOUT, NANO, SIZES, patch_row, plain_row

_README = "facebookresearch/deit 7e160fe, README_deit.md"
_TRUNCATED = "the README cuts to whole millions instead of rounding"

DEIT = System(
    name="DeiT",
    paper="Touvron et al., ICML 2021, arXiv 2012.12877",
    rows={
        **{
            f"deit_{size}{tag}_patch16_{side}": plain_row(
                patch_row(*SIZES[size]), size=side, distilled=bool(tag)
            )
            for side in (224, 384)
            for tag in ("", "_distilled")
            for size in ("tiny", "small", "base")
            if side == 224 or size == "base"
        },
        "deit_nano_32": plain_row(
            patch_row(*NANO, patch=4), size=32, num_classes=10, distilled=True
        ),
    },
    facts={
        "deit_tiny_patch16_224": Facts(
            num_params=5_717_416,
            gmacs=1.254,
            published_params=5,
            top1=72.2,
            source=_README,
            note=_TRUNCATED,
        ),
        "deit_small_patch16_224": Facts(
            num_params=22_050_664,
            gmacs=4.599,
            published_params=22,
            published_gmacs=4.6,
            top1=79.8,
            source="CvT, arXiv 2103.15808, Table 3 (DeiT's README has 79.9)",
        ),
        "deit_base_patch16_224": Facts(
            num_params=86_567_656,
            gmacs=17.564,
            published_params=86,
            published_gmacs=17.6,
            top1=81.8,
            source="CvT, arXiv 2103.15808, Table 3; " + _README,
            note=_TRUNCATED,
        ),
        "deit_base_patch16_384": Facts(
            num_params=86_859_496,
            gmacs=55.484,
            published_params=87,
            top1=82.9,
            source=_README,
        ),
        "deit_tiny_distilled_patch16_224": Facts(
            num_params=5_910_800, gmacs=1.261, published_params=6, top1=74.5, source=_README
        ),
        "deit_small_distilled_patch16_224": Facts(
            num_params=22_436_432, published_params=22, top1=81.2, source=_README
        ),
        "deit_base_distilled_patch16_224": Facts(
            num_params=87_338_192, published_params=87, top1=83.4, source=_README
        ),
        "deit_base_distilled_patch16_384": Facts(
            num_params=87_630_032, published_params=88, top1=85.2, source=_README + " (1000 epochs)"
        ),
    },
    layouts=(LAYOUT,),
    licence="Apache-2.0 (facebookresearch/deit)",
    is_in_timm=True,
)
