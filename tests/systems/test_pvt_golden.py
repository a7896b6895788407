"""PVT against numbers that the authors' own code computed, tables interpolated included."""

from functools import cache

import pytest
import torch

from cvt import Backbone, BackboneSpec
from cvt.systems.pvt import PVT
from cvt.weights.layouts import to_ours
from golden_recipe import check_logits, read_golden, weights

CASES = read_golden("whai362_pvt.json")["cases"]
SIZES = [(case, size) for case, facts in CASES.items() for size in facts["sizes"]]


def spec_of(case: str) -> BackboneSpec:
    facts = CASES[case]
    if "row" in facts:
        return PVT.rows[facts["row"]]
    small = facts["spec"]
    return PVT.rows["pvt_tiny"].change(
        embed_dim=small["embed_dims"],
        depth=small["depths"],
        num_heads=small["num_heads"],
        num_classes=small["num_classes"],
        img_size=small["img_size"],
    )


@cache
def tensors_of(case: str) -> dict[str, torch.Tensor]:
    return to_ours(weights(CASES[case]["shapes"]), source=case)


def load(case: str, **changes) -> Backbone:
    model = Backbone(spec_of(case).change(**changes)).eval()
    model.load_state_dict(tensors_of(case))
    return model


@pytest.mark.parametrize(("case", "size"), SIZES)
def test_float32_logits_are_the_authors(case: str, size: str) -> None:
    check_logits(load(case), size, CASES[case]["sizes"][size])


@pytest.mark.parametrize("size", CASES["small"]["sizes"])
def test_float64_agrees_to_ten_digits(size: str) -> None:
    check_logits(load("small").double(), size, CASES["small"]["sizes"][size])


def test_where_the_authors_code_crashes_the_tables_are_interpolated() -> None:
    """At twice the size, stage 2 has as many tokens as stage 1 was made for."""
    model = load("small").double()
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 128, 128, dtype=torch.float64))
        model.set_input_size(128)
        torch.testing.assert_close(model(torch.zeros(1, 3, 128, 128).double()), logits)


def test_one_epsilon_would_not_pass() -> None:
    """The numbers tell the embeddings' epsilon, 1e-5, from the blocks' 1e-6."""
    model = load("small", embed_norm_eps=1e-6).double()
    with pytest.raises(AssertionError):
        check_logits(model, "64x64", CASES["small"]["sizes"]["64x64"])
