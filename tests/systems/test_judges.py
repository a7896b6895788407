"""Logits of ViT, DeiT, Twins-PCPVT, TNT and PVT against timm's and transformers' own code.

Every parameter is random. Tolerances are relative to the largest logit, of at least 1; the
judges' own rounding is in them. T2T and PVT at other sizes: see the golden tests.
"""

import pytest
import torch
from timm.models.twins import PosConv
from torch import Tensor, nn

from cvt.parts.position import ConditionalPosition
from cvt.systems.catalog import ROWS, make_network
from judges import ROW_OF, TIMM, judge_of, load, ours_of
from randomise import randomise

# Sizes that the judge takes with the table of the trained one, or that need none.
OTHER = {name: (96, 160) for name in ("vit_16", "vit_32", "deit", "deit_distilled", "twins")}


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def logits_of(judge: nn.Module, pixels: Tensor) -> Tensor:
    got = judge(pixels)
    return got if isinstance(got, Tensor) else got.logits


def check(got: Tensor, wanted: Tensor, rtol: float) -> None:
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(got, wanted, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("name", ROW_OF)
def test_float32_logits_at_the_trained_size(name: str) -> None:
    size = 224
    judge = judge_of(name, size)
    ours = load(ours_of(name, size), judge)
    with torch.inference_mode():
        wanted = logits_of(judge, image(size, size))
        check(ours(image(size, size)), wanted, 1e-5)


@pytest.mark.parametrize("name", ROW_OF)
def test_float64_logits_of_a_small_image(name: str) -> None:
    judge = judge_of(name, 64).double()
    ours = ours_of(name, 64)
    if name == "pvt":  # transformers has one epsilon everywhere, the authors two
        ours = make_network(ours.spec.change(embed_norm_eps=1e-6)).eval()
    load(ours.double(), judge)
    pixels = image(64, 64, dtype=torch.float64)
    with torch.inference_mode():
        wanted = logits_of(judge, pixels)
        assert wanted.abs().max() > 0.5
        check(ours(pixels), wanted, 1e-10)


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_another_size_with_the_trained_tables(name: str, dtype: torch.dtype) -> None:
    judge = judge_of(name, 64).to(dtype)
    ours = load(ours_of(name, 64).to(dtype), judge)
    pixels = image(*OTHER[name], dtype=dtype)
    with torch.inference_mode():
        # timm interpolates tables in float32, whatever they are.
        is_rough = dtype == torch.float32 or name != "twins"
        check(ours(pixels), logits_of(judge, pixels), 1e-5 if is_rough else 1e-10)


def test_both_classifiers_of_a_distilled_network() -> None:
    judge = judge_of("deit_distilled", 64).double()
    ours = load(ours_of("deit_distilled", 64).double(), judge)
    pixels = image(64, 64, dtype=torch.float64)
    mean = ours(pixels)
    for model in (judge, ours):
        model.train()
        model.set_distilled_training(True)
    wanted, got = judge(pixels), ours(pixels)
    assert len(got) == 2
    assert not torch.allclose(*got)
    for one, other in zip(got, wanted, strict=True):
        check(one, other, 1e-10)
    check(mean, (wanted[0] + wanted[1]) / 2, 1e-10)


@pytest.mark.parametrize("name", TIMM)
def test_gradients_reach_every_parameter_that_learns(name: str) -> None:
    ours = load(ours_of(name, 64), judge_of(name, 64))
    ours(image(64, 64)).square().sum().backward()
    for parameter, tensor in ours.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.isfinite().all(), parameter
        # A key's bias shifts all logits of a query alike.
        if not parameter.endswith("k.linear.bias"):
            assert tensor.grad.abs().max() > 0, parameter


def test_cpvt_s_encoding_is_that_of_twins() -> None:
    judge, ours = PosConv(12, 12).double(), ConditionalPosition(12).double()
    randomise(judge)
    ours.conv.load_state_dict(judge.proj[0].state_dict())
    tokens = torch.randn(2, 5 * 7, 12, dtype=torch.float64)
    check(ours(tokens, (5, 7), 0), judge(tokens, (5, 7)), 1e-12)


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
def test_cpvt_s_encoding_is_local(num_prefix: int) -> None:
    encode, grid = randomise(ConditionalPosition(4)), (6, 7)
    tokens = torch.randn(1, num_prefix + 42, 4)
    changed = tokens.clone()
    changed[:, num_prefix + 2 * 7 + 3] += 1
    moved = (encode(tokens, grid, num_prefix) - encode(changed, grid, num_prefix)).abs().amax(2)
    assert not moved[:, :num_prefix].any()
    is_near = torch.zeros(grid, dtype=torch.bool)
    is_near[1:4, 2:5] = True
    assert torch.equal(moved[0, num_prefix:].view(grid) > 0, is_near)


def test_cpvt_s_encoding_moves_with_the_grid_but_for_its_border() -> None:
    encode, grid = randomise(ConditionalPosition(4).double()), (8, 9)
    fmap = torch.randn(1, *grid, 4, dtype=torch.float64)
    shifted = fmap.roll((1, 2), (1, 2))
    there = encode(fmap.flatten(1, 2), grid, 0).view(1, *grid, 4)
    here = encode(shifted.flatten(1, 2), grid, 0).view(1, *grid, 4)
    torch.testing.assert_close(here[:, 2:-1, 3:-1], there[:, 1:-2, 1:-3], rtol=0, atol=1e-12)
    assert not torch.allclose(here[:, 1:, 2:], there[:, :-1, :-2])


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_cpvt_is_deit_without_its_table(size: str) -> None:
    stage = ROWS[f"cpvt_{size}"].stages[0]
    assert stage.pos_embed == "conditional"
    table = ROWS[f"deit_{size}_patch16_224"]
    assert ROWS[f"cpvt_{size}"].change(pos_embed="table") == table
    assert [ROWS[f"cpvt_{size}{tag}"].stages[0].peg_depth for tag in ("", "_peg5", "_gap")] == [
        1,
        5,
        5,
    ]
