import json
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.parts.embed import ConvEmbed
from cvt.parts.projection import AvgProjection, ConvProjection
from cvt.parts.spec import BackboneSpec, Spec, StageSpec
from cvt.systems.catalog import ROWS as ALL_ROWS
from cvt.systems.catalog import make_network, spec_from_dict
from cvt.systems.cvt import ROWS

TINY = StageSpec(embed_dim=8, depth=1, num_heads=2)


@pytest.mark.parametrize("name", ROWS)
def test_goes_to_json_and_back(name):
    spec = ROWS[name]
    assert BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_unknown_key_names_the_nearest():
    plain = ROWS["cvt_13"].to_dict()
    with pytest.raises(UserError, match=r"'num_clases'.*'num_classes'"):
        BackboneSpec.from_dict({**plain, "num_clases": 10})
    plain["stages"][1]["kv_strid"] = 2
    with pytest.raises(UserError, match=r"kv_strid'.*'kv_stride'"):
        BackboneSpec.from_dict(plain)


@pytest.mark.parametrize("stages", [None, 3, [1, 2]])
def test_from_dict_needs_stages(stages):
    with pytest.raises(UserError, match="stages in the spec"):
        BackboneSpec.from_dict({"stages": stages})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed_dim", 0),
        ("embed_dim", 9),
        ("depth", 1.5),
        ("num_heads", True),
        ("conv_kernel", 4),
        ("embed_padding", -1),
        ("drop_path_rate", 1.5),
        ("projection", "cnv"),
        ("pos_embed", "learned"),
        ("cls_token", 1),
        ("mlp_ratio", 0),
        ("embed", "t2t_perform"),
        ("embed_norm", 1),
        ("peg_depth", 0),
        ("depth", -1),
    ],
)
def test_wrong_value_of_a_stage_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        StageSpec(**{"embed_dim": 8, "depth": 1, "num_heads": 2, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages", ()),
        ("num_classes", -1),
        ("act_layer", "geluu"),
        ("attn_scale", "head"),
        ("global_pool", "token"),
        ("img_size", (0, 8)),
        ("extra_level", 1),
        ("pos_interpolation", "cubic"),
        ("drop_path_schedule", "block"),
        ("distilled", 1),
        ("distilled", True),
    ],
)
def test_wrong_value_of_the_whole_is_refused(field, value):
    with pytest.raises(UserError):
        BackboneSpec(**{"stages": (TINY,), "global_pool": "avg", field: value})


def test_strided_queries_need_a_convolution():
    with pytest.raises(UserError, match="q_stride"):
        StageSpec(embed_dim=8, depth=1, num_heads=2, projection="linear", q_stride=2)


def test_specs_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        TINY.depth = 3


def test_change_sets_every_stage_or_each():
    spec = ROWS["cvt_13"]
    assert [s.kv_stride for s in spec.change(kv_stride=1).stages] == [1, 1, 1]
    assert [s.kv_stride for s in spec.change(kv_stride=[1, 2, 4]).stages] == [1, 2, 4]
    assert spec.change(num_classes=7, depth=(1, 1, 1)).num_classes == 7
    assert spec.stages[2].depth == 10


def test_change_replaces_dependent_fields_together():
    changed = ROWS["cvt_13"].change(embed_dim=(10, 20, 35), num_heads=(5, 10, 7))
    assert [s.embed_dim for s in changed.stages] == [10, 20, 35]


def test_change_refuses_unknown_fields_and_wrong_lengths():
    with pytest.raises(UserError, match=r"'kv_strides'.*'kv_stride'"):
        ROWS["cvt_13"].change(kv_strides=1)
    with pytest.raises(UserError, match="2 values for 3 stages"):
        ROWS["cvt_13"].change(kv_stride=(1, 2))


def test_without_a_class_token_pooling_becomes_the_mean():
    assert ROWS["cvt_13"].change(cls_token=False).global_pool == "avg"
    with pytest.raises(UserError, match="class token"):
        ROWS["cvt_13"].change(cls_token=False, global_pool="token")


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 4),
    projection=st.sampled_from(["conv", "avg", "linear"]),
)
def test_grids_are_those_that_torch_makes(size, kernel, stride, projection):
    row = StageSpec(
        embed_dim=2,
        depth=1,
        num_heads=1,
        embed_kernel=kernel,
        embed_stride=stride,
        embed_padding=kernel // 2,
        projection=projection,
        conv_kernel=kernel,
        kv_stride=stride,
    )
    embed = ConvEmbed(1, 2, kernel=kernel, stride=stride, padding=kernel // 2, norm_eps=1e-5)
    _, grid = embed(torch.zeros(1, 1, *size))
    assert row.grid_after_embed(size) == grid
    if projection != "linear":
        kind = ConvProjection if projection == "conv" else AvgProjection
        read = kind(2, kernel=kernel, stride=stride, bias=False).eval()
        assert row.kv_grid(grid) == tuple(read.read(torch.zeros(1, 2, *grid)).shape[2:])
    else:
        assert row.kv_grid(grid) == grid


@pytest.mark.parametrize("name", ROWS)
def test_min_size_is_the_smallest_that_has_a_grid(name):
    spec = ROWS[name].change(embed_padding=0)
    side = spec.min_size
    assert min(spec.grids((side, 3 * side))[-1]) == 1
    with pytest.raises(UserError, match=f"smallest side is {side} pixels"):
        spec.grids((side - 1, 3 * side))


@pytest.mark.parametrize("name", ALL_ROWS)
def test_every_row_goes_to_json_and_back(name):
    spec = ALL_ROWS[name]
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    least = spec.min_size
    assert min(spec.grids((least, least + 1))[-1]) == 1
    if least > 1:
        with pytest.raises(UserError, match=f"smallest side is {least} pixels"):
            spec.grids((3 * least, least - 1))


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="kind 'tntt', expected tnt, timm or none"):
        spec_from_dict({"kind": "tntt"})


def test_asking_for_distillation_puts_a_class_token_beside_it():
    spec = ROWS["cvt_nano_32"].change(distilled=True)
    assert (spec.global_pool, spec.num_prefix) == ("token", (0, 0, 2))
    assert [stage.cls_token for stage in spec.stages] == [False, False, True]
    assert ROWS["cvt_13"].change(distilled=True).num_prefix == (0, 0, 2)
    assert ROWS["cvt_nano_32"].change(distilled=True, global_pool="").global_pool == ""
    with pytest.raises(UserError, match="needs a class token"):
        ROWS["cvt_nano_32"].change(distilled=True, cls_token=False)


def test_reduction_needs_no_odd_kernel_and_sets_the_smallest_grid():
    stage = StageSpec(embed_dim=8, depth=1, num_heads=2, projection="reduction", kv_stride=4)
    assert stage.kv_grid((9, 4)) == (2, 1)
    spec = BackboneSpec(stages=(stage,), global_pool="avg")
    assert min(spec.grids((spec.min_size, 40))[0]) == 4
    with pytest.raises(UserError, match="smallest side"):
        spec.grids((spec.min_size - 1, 40))
    assert spec.change(depth=0, global_pool="avg").min_size == 1  # nothing reads keys there


@given(depths=st.lists(st.integers(0, 4), min_size=1, max_size=4), rate=st.floats(0, 1))
def test_stochastic_depth_grows_within_stages_or_over_all_blocks(depths, rate):
    stages = tuple(
        StageSpec(embed_dim=8, depth=depth, num_heads=1, drop_path_rate=rate) for depth in depths
    )
    within = BackboneSpec(stages=stages, global_pool="avg").drop_path_rates()
    over_all = BackboneSpec(stages=stages, global_pool="avg", drop_path_schedule="network")
    for depth, rates in zip(depths, within, strict=True):
        assert rates == pytest.approx([rate * n / max(depth - 1, 1) for n in range(depth)])
    flat = [each for rates in over_all.drop_path_rates() for each in rates]
    total = sum(depths)
    assert flat == pytest.approx([rate * n / max(total - 1, 1) for n in range(total)])
    assert [len(rates) for rates in over_all.drop_path_rates()] == depths


def test_levels_are_stages_or_the_blocks_of_the_only_one():
    def levels(*depths):
        stages = tuple(StageSpec(embed_dim=8, depth=depth, num_heads=1) for depth in depths)
        return BackboneSpec(stages=stages, global_pool="avg").levels

    assert levels(3) == ((0, 0), (0, 1), (0, 2))
    assert levels(0, 0, 7) == ((0, -1), (1, -1), (2, 6))
    assert levels(1, 2) == ((0, 0), (1, 1))
    assert levels(0) == ((0, -1),)
    assert ALL_ROWS["vit_tiny_patch16_224"].out_indices == 3
    assert ALL_ROWS["pvt_tiny"].out_indices == (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Flat(Spec):
    """The least that a new kind of network has to say."""

    kind: ClassVar[str] = "flat"
    network: ClassVar[str] = "torch.nn:Identity"

    num_classes: int = 10
    in_chans: int = 3
    img_size: tuple[int, int] = (8, 8)
    global_pool: str = ""


def test_a_new_kind_of_network_has_the_rest_from_the_contract():
    spec = Flat().change(num_classes=2)
    assert spec.to_dict() == {
        **{"kind": "flat", "num_classes": 2, "in_chans": 3},
        **{"img_size": [8, 8], "global_pool": ""},
    }
    assert Flat.from_dict(spec.to_dict()) == spec
    with pytest.raises(UserError, match="kind 'tnt', expected 'flat'"):
        Flat.from_dict({"kind": "tnt"})
    with pytest.raises(UserError, match="Unknown field 'num_clases'"):
        spec.change(num_clases=2)
    assert spec.classifiers == ("head",)
    assert (spec.staged, spec.axes, spec.extra_level_index, spec.made_by_timm) == (
        *[None] * 3,
        False,
    )
    assert spec.tables((8, 8)) == {}
    assert isinstance(make_network(spec), torch.nn.Identity)
