"""Every foreign layout: recognised by itself, loaded strictly, strict about unknown names."""

import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import Tensor

from cvt.errors import UserError
from cvt.systems.catalog import SYSTEMS, make_network
from cvt.systems.cvt import ROWS as CVT_ROWS
from cvt.systems.pvt import PVT
from cvt.systems.system import Rule, rename
from cvt.systems.t2t import T2T
from cvt.systems.vit import LAYOUT
from cvt.weights.layouts import to_hugging_face, to_microsoft
from golden_recipe import read_golden, weights
from judges import ROW_OF, judge_of, layouts_of, load, ours_of

SYSTEM_OF = {"vit": "ViT", "deit": "DeiT", "twins": "Twins", "tnt": "TNT", "pvt": "PVT"}
GOLDEN = {
    ("yitu_t2t.json", "performer_small"): T2T,
    ("yitu_t2t.json", "transformer_small"): T2T,
    ("whai362_pvt.json", "small"): PVT,
}
AUTHORS_TNT = {
    "patch_pos": "outer_pos",
    "pixel_pos": "inner_pos",
    "pixel_embed": "patch_embed",
    "norm1_proj": "proj_norm1",
    "norm2_proj": "proj_norm2",
    "norm_in": "inner_norm1",
    "attn_in": "inner_attn",
    "norm_mlp_in": "inner_norm2",
    "mlp_in": "inner_mlp",
    "norm_out": "outer_norm1",
    "attn_out": "outer_attn",
    "norm_mlp": "outer_norm2",
    "mlp": "outer_mlp",
}


def authors_tnt(depth: int = 1) -> dict[str, Tensor]:
    """timm's network in the authors' names, who store words as a sequence and one unused tensor."""
    named = {}
    for name, tensor in judge_of("tnt", 64, depth).state_dict().items():
        if name == "pixel_pos":
            tensor = tensor.flatten(2).transpose(1, 2)
        named[".".join(AUTHORS_TNT.get(part, part) for part in name.split("."))] = tensor
    return {**named, "outer_tokens": torch.zeros(1, 16, 96)}


def golden(file: str, case: str) -> dict[str, Tensor]:
    return weights(read_golden(file)["cases"][case]["shapes"])


@cache
def foreign() -> dict[str, dict[str, Tensor]]:
    """One state dict in each layout."""
    found = {name: judge_of(name, 64, 1).state_dict() for name in ROW_OF}
    found["authors' tnt"] = authors_tnt()
    bare = {name.removeprefix("pvt."): tensor for name, tensor in found["pvt"].items()}
    found["bare pvt"] = {n: t for n, t in bare.items() if not n.startswith("classifier")}
    cvt = make_network(CVT_ROWS["cvt_nano_32"]).state_dict()
    found["microsoft's cvt"], found["cvt"] = to_microsoft(cvt), to_hugging_face(cvt)
    bare = {name.removeprefix("cvt."): tensor for name, tensor in found["cvt"].items()}
    found["bare cvt"] = {n: t for n, t in bare.items() if n.startswith("encoder.")}
    return {**found, **{f"authors' {case}": golden(file, case) for file, case in GOLDEN}}


@pytest.mark.parametrize("name", ROW_OF)
def test_every_tensor_of_a_judge_loads(name: str) -> None:
    judge = judge_of(name, 64)
    ours = load(ours_of(name, 64), judge)
    own = sum(each.numel() for each in ours.parameters())
    assert own == sum(each.numel() for each in judge.parameters())


def test_each_layout_is_told_from_all_others() -> None:
    recognised = {name: layouts_of(tensors) for name, tensors in foreign().items()}
    assert {name: len(found) for name, found in recognised.items()} == dict.fromkeys(recognised, 1)
    for system in SYSTEMS:
        for layout in system.layouts:
            assert any(layout in found for found in recognised.values()), layout.fingerprint
    for name in ROW_OF:
        (system,) = (s for s in SYSTEMS if s.name == SYSTEM_OF[name.split("_")[0]])
        assert recognised[name][0] in system.layouts
    for (_, case), system in GOLDEN.items():
        assert recognised[f"authors' {case}"][0] in system.layouts


def test_our_own_names_are_nobody_else_s() -> None:
    with torch.device("meta"):
        assert layouts_of(make_network(CVT_ROWS["cvt_13"]).state_dict()) == []
    for name in ROW_OF:
        assert layouts_of(ours_of(name, 64, 1).state_dict()) == []


def test_a_bare_pvt_brings_all_but_the_classifier() -> None:
    tensors = foreign()["bare pvt"]
    (layout,) = layouts_of(tensors)
    missing = ours_of("pvt", 64).state_dict().keys() - layout.to_ours(tensors).keys()
    assert missing <= {"norm.weight", "norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["vit_16", "twins", "tnt", "pvt", "authors' small"])
def test_unknown_names_are_refused_three_of_them_shown(name: str) -> None:
    tensors = foreign()[name]
    (layout,) = layouts_of(tensors)
    strange = {f"blocks.0.new{number}.weight": torch.zeros(1) for number in range(5)}
    with pytest.raises(UserError, match=r"'blocks\.0\.new2\.weight' and 2 more in a checkpoint"):
        layout.to_ours({**tensors, **strange})


def test_a_fused_tensor_without_equal_parts_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of 3"):
        LAYOUT.to_ours({"blocks.0.attn.qkv.weight": torch.zeros(10, 4)})


def test_the_order_of_the_fused_parts() -> None:
    """timm's is q, k, v; the performer's k, q, v."""
    (t2t,) = T2T.layouts
    rows = torch.arange(6.0).view(6, 1)
    named = {"blocks.0.attn.qkv.weight": rows, "tokens_to_token.attention2.kqv.weight": rows}
    ours = t2t.to_ours(named)
    for letter, first in zip("qkv", (0, 2, 4), strict=True):
        assert ours[f"stages.2.blocks.0.attn.{letter}.linear.weight"][0] == first
    for letter, first in zip("kqv", (0, 2, 4), strict=True):
        assert ours[f"stages.1.embed.{letter}.weight"][0] == first


def test_the_first_rule_wins_and_what_has_no_name_is_left_out() -> None:
    rules = (Rule("a", ("b",)), Rule(r"\w", ("c",)), Rule("gone.*"))
    tensors = {"a": torch.zeros(1), "x": torch.ones(1), "gone.weight": torch.ones(2)}
    assert rename(tensors, rules, "nobody").keys() == {"b", "c"}


def test_the_maps_need_no_torch() -> None:
    code = "import sys, cvt.systems.catalog; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
