"""The tables of CvT's paper (arXiv 2103.15808 v1) as data: what is printed there, nothing counted.

Table 4 is transfer from ImageNet-22k; it needs weights that only the authors could train.
"""

from dataclasses import dataclass

from cvt.parts.spec import Axes

PAPER = "arXiv 2103.15808"


@dataclass(frozen=True)
class PaperLine:
    """A line of Tables 2, 3 and 5 to 8.

    Args:
        row: Our row for it, if there is one.
        params: In millions.
        gmacs: What the paper calls GFLOPs, at `size`.
        top1: On ImageNet in percent, as `real` and `v2`.
        note: Why there is no row, or why what is printed is not what our row counts.
    """

    label: str = ""
    row: str | None = None
    size: int = 224
    params: float | None = None
    gmacs: float | None = None
    top1: float | None = None
    real: float | None = None
    v2: float | None = None
    note: str = ""


def is_rounding(published: float, computed: float) -> bool:
    """Whether a published figure is the computed one at the digits that it was written with.

    Args:
        published: As printed: 22 has no digit after the point, 22.0 and 4.6 have one.
        computed: In the same unit.
    """
    _, _, decimals = str(published).partition(".")
    return abs(published - computed) <= 0.5 * 10.0 ** -len(decimals) * (1 + 1e-9)


def say_gmacs(macs: int) -> str:
    """Returns multiply-accumulates in units of 10**9, three digits of them at least."""
    gmacs = macs / 1e9
    return f"{gmacs:.3f}" if gmacs >= 0.1 else f"{gmacs:.5f}"


# By what the paper calls them: our systems that the line speaks of, and its four axes.
TABLE_1 = {
    "ViT, DeiT": (("vit", "deit"), Axes("yes", "non-overlapping", "linear", "no")),
    "CPVT": (("cpvt",), Axes("no (with PE generator)", "non-overlapping", "linear", "no")),
    "TNT": (("tnt",), Axes("yes", "non-overlapping (patch + pixel)", "linear", "no")),
    "T2T": (
        ("t2t",),
        Axes("yes", "overlapping (concatenate)", "linear", "partial (tokenisation)"),
    ),
    "PVT": (("pvt",), Axes("yes", "non-overlapping", "spatial reduction", "yes")),
    "CvT": (("cvt",), Axes("no", "overlapping (convolution)", "convolution", "yes")),
}

# The sides of the three stages' grids at 224 pixels are printed there too.
TABLE_2_GRIDS = (56, 28, 14)
TABLE_2 = {
    "cvt_13": PaperLine(params=19.98, gmacs=4.53),
    "cvt_21": PaperLine(params=31.54, gmacs=7.13),
    "cvt_w24": PaperLine(params=276.7, gmacs=60.86),
}

_NO_BIT = "BiT is a ResNet-152x4 with group norm and weight standardisation, which is not here"
_NO_H16 = "ViT's own paper has H/14 (vit_huge_patch14_224), not H/16"
_CUT = "the printed figure is the counted one with its decimals cut off"
_RESNET_101 = (
    "7.9 is what papers of the time quote; the stride on the 3x3 convolution, as everybody has it "
    "by now, gives the counted figure"
)
_NO_HEAD = "86 M is what the network without its classifier has (0.769 M)"
_VIT_L = "307 M is ViT's own paper's figure; no setting with 1000 classes gives it"
_PVT_S = "PVT's own table prints 24.5 M"
_TNT_B = (
    "the authors print 65.6 M, which has a frozen tensor in it that nothing reads (65.554 M with "
    "it), and 14.1 G; CvT's paper quotes the accuracies of TNT's first version"
)
_FLOPS = "the origin of the paper's slightly different GFLOPs is not known"
_NO_NAS = "the layers that the search chose were never published"

# By group; those with 22k were trained on ImageNet-22k first.
TABLE_3 = {
    "CNN": (
        PaperLine("ResNet-50", "resnet50", 224, 25, 4.1, 76.2, 82.5, 63.3, _CUT),
        PaperLine("ResNet-101", "resnet101", 224, 45, 7.9, 77.4, 83.7, 65.7, _RESNET_101),
        PaperLine("ResNet-152", "resnet152", 224, 60, 11, 78.3, 84.1, 67.0, _CUT),
    ),
    "transformer": (
        PaperLine("ViT-B/16", "vit_base_patch16_384", 384, 86, 55.5, 77.9, 83.6, None, _NO_HEAD),
        PaperLine("ViT-L/16", "vit_large_patch16_384", 384, 307, 191.1, 76.5, 82.2, None, _VIT_L),
        PaperLine("DeiT-S", "deit_small_patch16_224", 224, 22, 4.6, 79.8, 85.7, 68.5),
        PaperLine("DeiT-B", "deit_base_patch16_224", 224, 86, 17.6, 81.8, 86.7, 71.5, _NO_HEAD),
        PaperLine("PVT-Small", "pvt_small", 224, 25, 3.8, 79.8, note=_PVT_S),
        PaperLine("PVT-Medium", "pvt_medium", 224, 44, 6.7, 81.2),
        PaperLine("PVT-Large", "pvt_large", 224, 61, 9.8, 81.7),
        PaperLine("T2T-ViTt-14", "t2t_vit_t_14", 224, 22, 6.1, 80.7),
        PaperLine("T2T-ViTt-19", "t2t_vit_t_19", 224, 39, 9.8, 81.4),
        PaperLine("T2T-ViTt-24", "t2t_vit_t_24", 224, 64, 15.0, 82.2),
        PaperLine("TNT-S", "tnt_s_patch16_224", 224, 24, 5.2, 81.3),
        PaperLine("TNT-B", "tnt_b_patch16_224", 224, 66, 14.1, 82.8, note=_TNT_B),
    ),
    "CvT": (
        PaperLine("CvT-13", "cvt_13", 224, 20, 4.5, 81.6, 86.7, 70.4, _FLOPS),
        PaperLine("CvT-21", "cvt_21", 224, 32, 7.1, 82.5, 87.2, 71.3, _FLOPS),
        PaperLine("CvT-13 at 384", "cvt_13", 384, 20, 16.3, 83.0, 87.9, 71.9),
        PaperLine("CvT-21 at 384", "cvt_21", 384, 32, 24.9, 83.3, 87.7, 71.9, _FLOPS),
        PaperLine("CvT-13-NAS", None, 224, 18, 4.1, 82.2, 87.5, 71.3, _NO_NAS),
    ),
    "CNN, 22k": (PaperLine("BiT-M", None, 480, 928, 837, 85.4, note=_NO_BIT),),
    "transformer, 22k": (
        PaperLine("ViT-B/16", "vit_base_patch16_384", 384, 86, 55.5, 84.0, 88.4, None, _NO_HEAD),
        PaperLine("ViT-L/16", "vit_large_patch16_384", 384, 307, 191.1, 85.2, 88.4, None, _VIT_L),
        PaperLine("ViT-H/16", None, 384, 632, None, 85.1, 88.7, None, _NO_H16),
    ),
    "CvT, 22k": (
        PaperLine("CvT-13 at 384", "cvt_13", 384, 20, 16, 83.3, 88.7, 72.9),
        PaperLine("CvT-21 at 384", "cvt_21", 384, 32, 25, 84.9, 89.8, 75.6),
        PaperLine("CvT-W24 at 384", "cvt_w24", 384, 277, 193.2, 87.7, 90.6, 78.8, _FLOPS),
    ),
}

# By the stages that have a position embedding; by whether DeiT-S has one.
TABLE_5 = {
    "every stage": PaperLine(top1=81.5),
    "first stage": PaperLine(top1=81.4),
    "last stage": PaperLine(top1=81.4),
    "none": PaperLine(top1=81.6),
}
TABLE_5_DEIT = {"with": PaperLine(top1=79.8), "without": PaperLine(top1=78.0)}
# By token embedding and position embedding.
TABLE_6 = {
    ("patches", "no position"): PaperLine(params=19.5, top1=80.7),
    ("patches", "position"): PaperLine(params=19.9, top1=81.1),
    ("convolution", "position"): PaperLine(params=20.3, top1=81.4),
    ("convolution", "no position"): PaperLine(params=20.0, top1=81.6),
}
# By the stride of keys and values.
TABLE_7 = {
    1: PaperLine(params=20, gmacs=6.55, top1=82.3),
    2: PaperLine(params=20, gmacs=4.53, top1=81.6),
}
# By how many stages, from the first, have the convolutional projection.
TABLE_8 = {
    0: PaperLine(top1=80.6),
    1: PaperLine(top1=80.8),
    2: PaperLine(top1=81.0),
    3: PaperLine(top1=81.6),
}
