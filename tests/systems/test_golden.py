"""Our arithmetic against numbers that microsoft/CvT's own code computed, kept in golden/.

Made once, from lib/models/cls_cvt.py at the commit named in the file: every tensor is filled by
`fill` below from its Microsoft name alone, so that nothing but these few numbers has to be stored.
The float64 numbers were made with a plain LayerNorm (the reference's own casts to float32).
"""

import json
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from cvt import Backbone, BackboneSpec, StageSpec
from cvt.systems.cvt import ROWS
from cvt.weights.layouts import to_microsoft, to_ours

GOLDEN = json.loads((Path(__file__).parent / "golden" / "microsoft_cvt.json").read_text())
SIZES = [(name, size) for name, case in GOLDEN["cases"].items() for size in case["sizes"]]
KERNELS = {"embed_kernel": (7, 3, 3), "embed_stride": (4, 2, 2), "embed_padding": (2, 1, 1)}
PROJECTIONS = {"dw_bn": "conv", "avg": "avg"}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The recipe: what a tensor of this Microsoft name and shape holds."""
    random = np.random.RandomState(crc32(name.encode()))
    if name.endswith("running_var"):
        return random.uniform(0.5, 2.0, shape)
    if name.endswith("cls_token"):
        return random.standard_normal(shape)
    if len(shape) > 1:
        return random.standard_normal(shape) * 1.5 / np.sqrt(np.prod(shape[1:]))
    if name.endswith("weight"):
        return random.uniform(0.5, 1.5, shape)
    return random.standard_normal(shape) * 0.3


def fill(model: Backbone) -> None:
    """Sets every weight, bias and running statistic by the recipe."""
    filled = {
        name: tensor
        if name.endswith("num_batches_tracked")
        else torch.from_numpy(np.asarray(values(name, tuple(tensor.shape)))).float()
        for name, tensor in to_microsoft(model.state_dict()).items()
    }
    model.load_state_dict(to_ours(filled))


def image(size: str) -> torch.Tensor:
    height, width = map(int, size.split("x"))
    random = np.random.RandomState(crc32(f"image {size}".encode()))
    return torch.from_numpy(random.standard_normal((2, 3, height, width))).float()


@cache
def golden_model(case: str) -> Backbone:
    facts = GOLDEN["cases"][case]["spec"]
    stages = [
        StageSpec(
            embed_dim=facts["dims"][i],
            depth=facts["depths"][i],
            num_heads=facts["heads"][i],
            cls_token=facts["cls_token"][i],
            projection=PROJECTIONS[facts["projection"][i]],
            **{name: column[i] for name, column in KERNELS.items()},
        )
        for i in range(3)
    ]
    pool = "token" if facts["cls_token"][-1] else "avg"
    spec = BackboneSpec(stages=tuple(stages), num_classes=facts["num_classes"], global_pool=pool)
    model = Backbone(spec).eval()
    fill(model)
    return model


def close(got: torch.Tensor, expected: list, rtol: float) -> None:
    """Compares with a tolerance relative to the largest number, as float errors spread."""
    wanted = torch.tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, wanted, rtol=0, atol=rtol * wanted.abs().max().item())


def check_maps(fmaps: list[torch.Tensor], expected: list[dict], rtol: float) -> None:
    for fmap, facts in zip(fmaps, expected, strict=True):
        assert list(fmap.shape) == facts["shape"]
        assert fmap.norm().item() == pytest.approx(facts["norm"], rel=rtol)
        where = np.linspace(0, fmap.numel() - 1, len(facts["values"])).astype(int)
        close(fmap.flatten()[torch.from_numpy(where)], facts["values"], rtol)


@pytest.mark.parametrize(("case", "size"), SIZES)
def test_float32_logits_and_maps_are_the_reference_s(case: str, size: str) -> None:
    model, expected = golden_model(case), GOLDEN["cases"][case]["sizes"][size]
    with torch.inference_mode():
        tokens, fmaps = model.forward_intermediates(image(size))
        logits = model.forward_head(tokens)
    shown = len(expected["float32"]["logits"][0])
    close(logits[:, :shown], expected["float32"]["logits"], 3e-5)
    close(logits.norm(dim=1), expected["float32"]["logits_norm"], 3e-5)
    check_maps(fmaps, expected["float64"]["maps"], 3e-5)


@pytest.mark.parametrize(("case", "size"), [pair for pair in SIZES if pair[0] != "cvt_13"])
def test_float64_agrees_to_nine_digits(case: str, size: str) -> None:
    expected = GOLDEN["cases"][case]["sizes"][size]["float64"]
    model = Backbone(golden_model(case).spec).eval()
    fill(model)
    model.double()
    with torch.inference_mode():
        tokens, fmaps = model.forward_intermediates(image(size).double())
        logits = model.forward_head(tokens)
    close(logits, expected["logits"], 2e-9)
    check_maps(fmaps, expected["maps"], 2e-9)


def test_the_full_case_is_the_published_row() -> None:
    assert [s.grid_after_embed((224, 224)) for s in ROWS["cvt_13"].stages[:1]] == [(56, 56)]
    changed = golden_model("cvt_13").spec.change(drop_path_rate=(0.0, 0.0, 0.1))
    assert changed == ROWS["cvt_13"]


def test_gelu_would_not_pass() -> None:
    """The numbers tell QuickGELU from GELU, the difference between the reference and its port."""
    spec = golden_model("tiny").spec.change(act_layer="gelu")
    model = Backbone(spec).eval()
    fill(model)
    with torch.inference_mode():
        logits = model(image("64x96"))
    with pytest.raises(AssertionError):
        close(logits, GOLDEN["cases"]["tiny"]["sizes"]["64x96"]["float32"]["logits"], 1e-3)
