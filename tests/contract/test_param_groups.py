"""Weight-decay groups and layer-wise learning rates, as timm's optimiser factory reads them."""

import re

import pytest
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay

from cvt.systems.catalog import ROWS
from cvt.systems.system import is_ours
from networks import CVT_NAMES, NAMES, ROW_NAMES, image, meta, small


def names_of(model, group) -> set[str]:
    by_id = {id(parameter): key for key, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("name", CVT_NAMES)
def test_no_weight_decay_is_the_class_token_and_the_tables(name):
    """Microsoft's `no_weight_decay`; the paper's rows have one class token and no table."""
    tokens = set() if is_ours(name) else {"stages.2.cls_token"}
    assert meta(name).no_weight_decay() == tokens
    tables = {f"stages.{index}.pos_embed.table" for index in range(3)}
    assert meta(name, pos_embed="table").no_weight_decay() == tokens | tables


@pytest.mark.parametrize("name", CVT_NAMES)
def test_decay_is_for_matrices_and_kernels(name):
    """WITHOUT_WD_LIST is bn, bias, ln: depthwise kernels are decayed like any other."""
    model = meta(name, pos_embed="table")
    plain, decayed = param_groups_weight_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay()
    )
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert names_of(model, decayed) == {
        key
        for key, parameter in model.named_parameters()
        if key.endswith("weight") and parameter.ndim > 1
    }
    assert "stages.0.blocks.0.attn.k.conv.weight" in names_of(model, decayed)
    assert {k for k in names_of(model, plain) if "cls_token" in k} == {
        key for key, _ in model.named_parameters() if "cls_token" in key
    }


def depth_key(key: str, depths: list[int], coarse: bool) -> int:
    """The order in which an image meets the parameters, worked out from the name alone."""
    match = re.match(r"stages\.(\d)\.(?:blocks\.(\d+)\.)?", key)
    if key.startswith("norm") and not coarse:  # timm's 99999: goes with the layer before it
        return sum(depth + 1 for depth in depths) - 1
    if match is None:
        return 1000
    stage, block = int(match[1]), match[2]
    if coarse:
        return 0 if key.startswith("stages.0.embed") else 1 + stage
    before = sum(depth + 1 for depth in depths[:stage])
    return before + (0 if block is None else 1 + int(block))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", CVT_NAMES)
def test_layers_are_grouped_in_the_order_of_depth(name, coarse):
    model = meta(name, pos_embed="table")
    layers = group_parameters(model, model.group_matcher(coarse=coarse))
    depths = [len(stage.blocks) for stage in model.stages]
    assert sorted(key for keys in layers.values() for key in keys) == sorted(
        key for key, _ in model.named_parameters()
    )
    expected: dict[int, set[str]] = {}
    for key, _ in model.named_parameters():
        expected.setdefault(depth_key(key, depths, coarse), set()).add(key)
    got = [set(layers[index]) for index in sorted(layers)]
    assert got == [expected[index] for index in sorted(expected)]


@pytest.mark.parametrize("name", CVT_NAMES)
def test_layer_decay_lowers_the_rate_towards_the_stem(name):
    model = meta(name)
    groups = param_groups_layer_decay(
        model,
        weight_decay=0.05,
        no_weight_decay_list=model.no_weight_decay(),
        layer_decay=0.5,
    )
    scale = {key: group["lr_scale"] for group in groups for key in names_of(model, group)}
    assert len(scale) == len(list(model.parameters()))
    decay = {key: group["weight_decay"] for group in groups for key in names_of(model, group)}
    assert {key for key, value in decay.items() if value} == {
        key for key, parameter in model.named_parameters() if parameter.ndim > 1
    } - model.no_weight_decay()
    path = ["stages.0.embed.proj.weight"]
    for index, stage in enumerate(model.stages):
        path += [f"stages.{index}.embed.proj.weight"] * (index > 0)
        path += [f"stages.{index}.blocks.{j}.mlp.fc1.weight" for j in range(len(stage.blocks))]
    path += ["head.weight"]
    scales = [scale[key] for key in path]
    assert scales[-1] == 1.0
    assert scales == sorted(set(scales))
    assert scale["norm.weight"] == scale[path[-2]]


@pytest.mark.parametrize("name", NAMES)
def test_timms_optimiser_factory_takes_a_step(name):
    model = small(name)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75)
    before = model.head.weight.detach().clone()
    model(image(name)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize("name", ROW_NAMES)
def test_every_row_skips_the_decay_of_its_tokens_and_tables(name):
    model = meta(name)
    keys = {key for key, _ in model.named_parameters()}
    special = {key for key in keys if key.endswith(("_token", ".table"))}
    assert model.no_weight_decay() == special
    stages = getattr(ROWS[name], "stages", None)
    if stages:
        tables = sum(stage.pos_embed == "table" for stage in stages)
        assert len(special) == tables + sum(ROWS[name].num_prefix)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", ROW_NAMES)
def test_every_parameter_of_every_row_is_in_one_group(name, coarse):
    """Stem first, then block by block; the final norm with the last block, the head after all."""
    model = meta(name)
    layers = group_parameters(model, model.group_matcher(coarse=coarse))
    keys = [key for group in layers.values() for key in group]
    assert sorted(keys) == sorted(key for key, _ in model.named_parameters())
    order = {key: index for index, number in enumerate(sorted(layers)) for key in layers[number]}
    heads = {order[key] for key in keys if key.startswith("head")}
    assert heads == {len(layers) - 1}
    assert order["word_embed.proj.weight" if "tnt" in name else _first(keys)] == 0
    blocks = [key for key in keys if key.endswith("mlp.fc1.weight") and ".embed." not in key]
    depths = [order[key] for key in blocks]
    assert depths == sorted(depths)
    if not coarse:
        assert len(layers) >= 2 + sum("inner" not in key for key in blocks)
        assert order["norm.weight"] == depths[-1]
        pegs = [key for key in keys if ".pegs." in key]
        assert all(order[key] == order[_its_block(key)] for key in pegs)


def _first(keys: list[str]) -> str:
    return next(key for key in sorted(keys) if key.startswith("stages.0.embed."))


def _its_block(peg: str) -> str:
    return re.sub(r"pegs\.(\d+)\..*", r"blocks.\1.norm1.weight", peg)
