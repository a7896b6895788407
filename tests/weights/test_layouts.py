import pytest
import torch

from cvt import Backbone
from cvt.errors import UserError
from cvt.systems.cvt import PAPER_ROWS, ROWS
from cvt.weights.layouts import (
    find_layout,
    is_ours,
    strip_wrappers,
    to_hugging_face,
    to_microsoft,
    to_ours,
)

ENTRIES = {"cvt_13": 459, "cvt_21": 731, "cvt_w24": 833}


def on_meta(name):
    with torch.device("meta"):
        return Backbone(ROWS[name]).state_dict()


@pytest.mark.parametrize("name", ROWS)
def test_maps_are_bijective_for_every_row(name):
    ours = on_meta(name)
    for there in (to_microsoft, to_hugging_face):
        theirs = there(ours)
        assert len(theirs) == len(ours)
        assert not set(theirs) & (
            set(ours) - {"norm.weight", "norm.bias", "head.weight", "head.bias"}
        )
        returned = to_ours(theirs)
        assert list(returned) == list(ours)
        assert all(returned[key] is ours[key] for key in ours)


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_number_of_entries_is_the_reference_s(name):
    assert len(to_microsoft(on_meta(name))) == ENTRIES[name]


def test_names_are_spelled_as_published():
    ours = {
        "stages.2.cls_token": 0,
        "stages.0.embed.norm.bias": 1,
        "stages.1.blocks.10.attn.k.bn.running_var": 2,
        "stages.1.blocks.0.attn.v.linear.weight": 3,
        "stages.1.blocks.0.attn.q.conv.weight": 4,
    }
    assert list(to_microsoft(ours)) == [
        "stage2.cls_token",
        "stage0.patch_embed.norm.bias",
        "stage1.blocks.10.attn.conv_proj_k.bn.running_var",
        "stage1.blocks.0.attn.proj_v.weight",
        "stage1.blocks.0.attn.conv_proj_q.conv.weight",
    ]
    assert list(to_hugging_face(ours)) == [
        "cvt.encoder.stages.2.cls_token",
        "cvt.encoder.stages.0.embedding.convolution_embeddings.normalization.bias",
        "cvt.encoder.stages.1.layers.10.attention.attention.convolution_projection_key"
        ".convolution_projection.normalization.running_var",
        "cvt.encoder.stages.1.layers.0.attention.attention.projection_value.weight",
        "cvt.encoder.stages.1.layers.0.attention.attention.convolution_projection_query"
        ".convolution_projection.convolution.weight",
    ]


def test_recognised_and_brought_to_our_names_whatever_the_wrapper(tiny_model, same):
    ours = tiny_model.state_dict()
    layouts = {
        "cvt": ours,
        "microsoft": to_microsoft(ours),
        "transformers": to_hugging_face(ours),
    }
    for layout, state_dict in layouts.items():
        found = find_layout(state_dict)
        assert is_ours(state_dict) == (layout == "cvt")
        assert (found.name if found else "cvt") == layout
        for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
            wrapped = {prefix + name: tensor for name, tensor in state_dict.items()}
            assert same(to_ours(wrapped, source="x"), ours)


def test_a_prefix_that_not_all_names_have_stays():
    assert list(strip_wrappers({"module.a": 1, "b": 2})) == ["module.a", "b"]
    assert strip_wrappers({}) == {}


def test_a_bare_cvt_model_comes_out_without_norm_and_head(tiny_model):
    bare = {
        name.removeprefix("cvt."): tensor
        for name, tensor in to_hugging_face(tiny_model.state_dict()).items()
        if name.startswith("cvt.")
    }
    assert find_layout(bare).name == "transformers"
    missing = set(tiny_model.state_dict()) - set(to_ours(bare))
    assert missing == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    "name",
    ["stages.0.pos_embed.table", "stages.0.weight", "fc.weight", "stages.0.cls_token.weight"],
)
def test_a_name_without_counterpart_is_named(name):
    for convert in (to_microsoft, to_hugging_face):
        with pytest.raises(UserError, match=name):
            convert({name: torch.zeros(1)})


def test_another_network_s_state_dict_is_refused():
    with pytest.raises(
        UserError, match=r"x\.pth is no checkpoint of a known network: got 'conv1\.weight'"
    ):
        to_ours({"conv1.weight": torch.zeros(1)}, source="x.pth")
    with pytest.raises(UserError, match="no tensor at all"):
        to_ours({}, source="x.pth")
