"""Defects of published ports of CvT in what is built: rows, schedules, initialisation, counts.

One test each, which the port would fail; test_known_defects.py has the ports, and the defects in
what is computed.
"""

import pytest
import torch
from torch import nn

import cvt
from cvt.systems.cvt import PAPER_ROWS, ROWS
from networks import image, meta, small


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_headless_construction():
    """Microsoft: `num_classes=0` makes an identity, whose `.weight` the next line initialises."""
    headless = small("cvt_13", num_classes=0).eval()
    assert headless(image("cvt_13", 1)).shape == (1, 384)


def test_drop_path_rises_within_each_stage():
    """Hugging Face indexes the schedule with the stage: all ten blocks of stage 3 get 0.0222."""

    def rates(name, **changes):
        return [
            [getattr(block.drop_path1, "drop_prob", 0.0) for block in stage.blocks]
            for stage in meta(name, **changes).stages
        ]

    thirds = [0.0, 0.0111, 0.0222, 0.0333, 0.0444, 0.0556, 0.0667, 0.0778, 0.0889, 0.1]
    first, second, third = rates("cvt_13")
    assert (first, second) == ([0.0], [0.0, 0.0])
    assert [round(rate, 4) for rate in third] == thirds
    assert [round(rate, 4) for rate in rates("cvt_13", depth=3, drop_path_rate=(0.2, 0, 0.1))[0]]
    spread = rates("cvt_13", depth=(3, 1, 2), drop_path_rate=(0.2, 0.3, 0.1))
    assert spread == [[0.0, pytest.approx(0.1), 0.2], [0.0], [0.0, 0.1]]


def test_drop_path_is_the_same_for_both_branches():
    """Microsoft: one DropPath module serves attention and MLP alike."""
    for stage in meta("cvt_21").stages:
        for block in stage.blocks:
            one, other = block.drop_path1, block.drop_path2
            assert getattr(one, "drop_prob", 0.0) == getattr(other, "drop_prob", 0.0)


def test_drop_path_of_w24_is_three_tenths():
    """Hugging Face's conversion never sets it: its configuration of W24 carries 0.1."""
    stage = meta("cvt_w24").stages[2]
    assert stage.blocks[-1].drop_path1.drop_prob == 0.3


@pytest.mark.parametrize("depth", [(1, 1, 1), (1, 1, 10), (1, 2, 2)], ids=str)
def test_any_depth(depth):
    """Hugging Face: IndexError where a stage has fewer blocks than its number."""
    network = small("cvt_13", depth=depth).eval()
    assert [len(stage.blocks) for stage in network.stages] == list(depth)
    assert network(image("cvt_13", 1)).shape == (1, 1000)


def test_class_token_is_in_the_last_stage():
    """lucidrains (issues 115, 336) has none at all."""
    for name in PAPER_ROWS:
        tokens = [key for key in meta(name).state_dict() if "cls_token" in key]
        assert tokens == ["stages.2.cls_token"]


def test_norms_have_an_epsilon_of_1e_5():
    """Hugging Face's configuration says 1e-12 and never reads it (pull request 18597)."""
    for name in PAPER_ROWS:
        norms = [m for m in meta(name).modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
        assert {norm.eps for norm in norms} == {1e-5}
        assert {norm.momentum for norm in norms if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_initialisation_is_microsofts():
    """Hugging Face draws convolutions from N(0, 0.02) and zeroes every bias.

    Convolutions keep torch's Kaiming-uniform (within fan_in ** -0.5), linear maps are N(0, 0.02)
    with biases of zero, and the head's bias keeps torch's uniform default.
    """
    torch.manual_seed(0)
    fresh = small("cvt_13", seed=None)
    for key, module in fresh.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, key
            # A uniform variable's standard deviation; 576 draws and more keep it within 10 %.
            assert module.weight.std() == pytest.approx(bound / 3**0.5, rel=0.1), key
        elif isinstance(module, nn.Linear):
            assert module.weight.std() == pytest.approx(0.02, rel=0.05), key
            assert (module.bias.abs().max() == 0) == (key != "head"), key
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all(), key
            assert (module.bias == 0).all(), key
    assert fresh.head.bias.abs().max() <= 384**-0.5
    assert fresh.stages[2].cls_token.std() == pytest.approx(0.02, rel=0.2)


def closed_formula(height: int, width: int) -> int:
    """CvT-13's multiply-accumulates by hand, for sides that are multiples of 32."""
    macs, chans = 0, 3
    rows = [(64, 1, 7, 4), (192, 2, 3, 8), (384, 10, 3, 16)]
    for index, (dim, depth, kernel, stride) in enumerate(rows):
        grid = (height // stride) * (width // stride)
        cls = int(index == 2)
        queries, keys = grid + cls, grid // 4 + cls
        macs += grid * dim * chans * kernel**2
        depthwise = 9 * dim * (grid + 2 * (grid // 4))
        linear = dim * dim * (queries + 2 * keys + queries)
        attention = 2 * queries * keys * dim
        mlp = 2 * 4 * dim * dim * queries
        macs += depth * (depthwise + linear + attention + mlp)
        chans = dim
    return macs + 384 * 1000


@pytest.mark.parametrize("size", [(224, 160), (160, 224), (224, 224), (384, 384)], ids=str)
def test_multiply_accumulates_of_any_size(size):
    """Microsoft's `compute_macs` takes the square root of the token count, and H for W.

    Counters that miss fused attention say 4.058 G at 224 instead of 4.566 G (issue 8).
    """
    assert cvt.describe("cvt_13", size).macs == closed_formula(*size)
    expected = {(224, 224): 4.566, (384, 384): 16.269}.get(size)
    if expected is not None:
        assert round(closed_formula(*size) / 1e9, 3) == expected


def test_queries_and_keys_are_read_at_their_strides():
    """rishikksh20 (issue 2): the stride of k and v left at 1."""
    for name in PAPER_ROWS:
        for stage in meta(name).stages:
            for block in stage.blocks:
                strides = [part.conv.stride for part in (block.attn.q, block.attn.k, block.attn.v)]
                assert strides == [(1, 1), (2, 2), (2, 2)]


def test_heads_are_64_wide():
    """lucidrains (issue 95): one head a stage by default."""
    for name in PAPER_ROWS:
        for stage in ROWS[name].stages:
            assert stage.embed_dim // stage.num_heads == 64


@pytest.mark.parametrize(
    ("name", "count", "entries"),
    [("cvt_13", 19_997_480, 459), ("cvt_21", 31_622_696, 731), ("cvt_w24", 277_196_392, 833)],
)
def test_exact_parameter_counts(name, count, entries):
    """lucidrains' CvT has others: no class token, no final norm, no q, k, v bias."""
    network = meta(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert len(network.state_dict()) == entries


def test_construction_is_silent(caplog, capsys):
    """Microsoft logs a line for every layer that it initialises."""
    with caplog.at_level("DEBUG"):
        meta("cvt_13")
    out, err = capsys.readouterr()
    ours = [record for record in caplog.records if record.name.startswith(("cvt", "root"))]
    assert (ours, out, err) == ([], "", "")
