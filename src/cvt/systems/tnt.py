"""TNT (Han et al., NeurIPS 2021, arXiv 2103.00112) as rows."""

from cvt.parts.tnt_spec import TNTSpec
from cvt.systems.system import HALF, Facts, System

_UNUSED = (
    "the authors' code also carries a frozen tensor that nothing reads (outer_tokens, {} numbers)"
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
        "tnt_s_patch16_224": Facts(
            num_params=23_768_584,
            gmacs=5.217,
            published_params=23.8,
            published_gmacs=5.2,
            top1=81.5,
            source="huawei-noah/CV-Backbones 25531f7, tnt_pytorch README",
        ),
        "tnt_b_patch16_224": Facts(
            num_params=65_428_680,
            gmacs=14.049,
            published_params=65.6,
            published_gmacs=14.1,
            top1=82.9,
            source="huawei-noah/CV-Backbones 25531f7, tnt_pytorch README",
            note=_UNUSED.format("125,440"),
        ),
    },
    licence="Apache-2.0 (huawei-noah/CV-Backbones)",
    mean=HALF,
    std=HALF,
    is_in_timm=True,
)
