"""What a checkpoint's size of image, of input and of output is seen in: names and grids."""

from collections.abc import Mapping

from torch import Tensor

from cvt.parts.contract_spec import Spec
from cvt.parts.spec import BackboneSpec
from cvt.parts.tnt_spec import TNTSpec
from cvt.systems.baselines import BaselineSpec

Grid = tuple[int, int]


def first_conv(spec: Spec) -> str | None:
    """Returns the name of the convolution that reads the image; None for T2T's soft split."""
    if isinstance(spec, TNTSpec):
        return "word_embed.proj"
    if isinstance(spec, BaselineSpec):
        return "conv1" if spec.architecture.startswith("resnet") else "conv_stem"
    assert isinstance(spec, BackboneSpec)
    return "stages.0.embed.proj" if spec.stages[0].embed == "conv" else None


def classifiers(spec: Spec) -> tuple[str, ...]:
    """Returns the names of the classifiers, two with distillation."""
    if isinstance(spec, BaselineSpec):
        return ("fc",) if spec.architecture.startswith("resnet") else ("classifier",)
    is_distilled = isinstance(spec, BackboneSpec) and spec.distilled
    return ("head", "head_dist") if is_distilled else ("head",)


def tables(spec: Spec, img_size: Grid) -> dict[str, tuple[Grid, int]]:
    """Returns grid and number of prefix tokens of each position table at an image size (H, W).

    Raises:
        UserError: The image is too small.
    """
    if isinstance(spec, TNTSpec):
        return {"pos_embed.table": (spec.grids(img_size)[0], 1)}
    if not isinstance(spec, BackboneSpec):
        return {}
    incoming = [img_size, *spec.grids(img_size)[:-1]]
    return {
        f"stages.{index}.pos_embed.table": (row.grid_after_embed(size), spec.num_prefix[index])
        for index, (row, size) in enumerate(zip(spec.stages, incoming, strict=True))
        if row.pos_embed in ("table", "sinusoid")
    }


def num_classes(state_dict: Mapping[str, Tensor], spec: Spec) -> int:
    """Returns how many classes the (first) classifier tells apart; 0 without one."""
    weight = state_dict.get(f"{classifiers(spec)[0]}.weight")
    return 0 if weight is None or not weight.ndim else weight.shape[0]


def in_chans(state_dict: Mapping[str, Tensor], spec: Spec) -> int:
    """Returns how many channels an image has; the spec's where no tensor tells it."""
    name = first_conv(spec)
    if name is not None:
        weight = state_dict.get(f"{name}.weight")
        return spec.in_chans if weight is None or weight.ndim != 4 else weight.shape[1]
    norm = state_dict.get("stages.0.embed.norm1.weight")
    window = spec.stages[0].embed_kernel ** 2 if isinstance(spec, BackboneSpec) else 1
    return spec.in_chans if norm is None or not norm.ndim else max(norm.shape[0] // window, 1)
