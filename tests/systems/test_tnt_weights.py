"""TNT's checkpoints as timm and as the authors name them: whole, strict, told apart."""

import pytest
import timm
import torch
from timm.models.tnt import checkpoint_filter_fn

from cvt.errors import UserError
from cvt.parts.spec import TNTSpec
from cvt.parts.tnt import TNT
from cvt.systems import tnt
from cvt.systems.catalog import SYSTEMS
from randomise import randomise

SPEC = TNTSpec(
    embed_dim=48,
    depth=2,
    num_heads=6,
    inner_dim=12,
    inner_heads=4,
    img_size=(48, 32),
    num_classes=10,
)
LAYOUTS = {layout.name: layout for layout in tnt.TNT.layouts}


def timm_model(name: str = "tnt_s_patch16_224") -> torch.nn.Module:
    model = timm.create_model(
        name,
        embed_dim=48,
        depth=2,
        num_heads_outer=6,
        inner_dim=12,
        img_size=(48, 32),
        num_classes=10,
    )
    return randomise(model).eval()


def authors_shapes(dim: int, c: int, words: int, patches: int, depth: int) -> dict[str, tuple]:
    """What huawei-noah/CV-Backbones 25531f7, tnt_pytorch, saves: names and shapes."""
    shapes: dict[str, tuple] = {
        "cls_token": (1, 1, dim),
        "outer_tokens": (1, patches, dim),
        "outer_pos": (1, patches + 1, dim),
        "inner_pos": (1, words, c),
        "patch_embed.proj.weight": (c, 3, 7, 7),
        "patch_embed.proj.bias": (c,),
        "proj.bias": (dim,),
        "head.weight": (10, dim),
        "head.bias": (10,),
        **norm("norm", dim),
    }
    for place in ("", *(f"blocks.{index}." for index in range(depth))):
        shapes |= norm(f"{place}proj_norm1", words * c) | norm(f"{place}proj_norm2", dim)
        shapes[f"{place}proj.weight"] = (dim, words * c)
    for index in range(depth):
        for stream, width in (("inner", c), ("outer", dim)):
            place = f"blocks.{index}.{stream}"
            shapes |= norm(f"{place}_norm1", width) | norm(f"{place}_norm2", width)
            shapes |= {
                f"{place}_attn.qk.weight": (2 * width, width),
                f"{place}_attn.v.weight": (width, width),
                f"{place}_attn.proj.weight": (width, width),
                f"{place}_attn.proj.bias": (width,),
                f"{place}_mlp.fc1.weight": (4 * width, width),
                f"{place}_mlp.fc1.bias": (4 * width,),
                f"{place}_mlp.fc2.weight": (width, 4 * width),
                f"{place}_mlp.fc2.bias": (width,),
            }
    return shapes


def norm(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def authors_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + name.endswith("norm1.weight")
        for name, shape in authors_shapes(48, 12, 16, 6, 2).items()
    }


STATES = {"timm": lambda: timm_model().state_dict(), "authors": authors_state}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_arrives_and_the_source_is_left_alone(name):
    state = STATES[name]()
    names = list(state)
    ours = LAYOUTS[name].to_ours(state)
    assert list(state) == names
    expected = TNT(SPEC).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    read = [tensor for key, tensor in state.items() if key != "outer_tokens"]
    total = sum(tensor.double().sum().item() for tensor in read)
    assert sum(tensor.double().sum().item() for tensor in ours.values()) == pytest.approx(total)


def test_the_authors_checkpoint_gives_the_logits_that_timm_gives_it():
    """timm brings the authors' names to its own with a filter of its own: the judge here."""
    theirs, ours = timm_model(), TNT(SPEC).eval()
    theirs.load_state_dict(checkpoint_filter_fn(authors_state(), theirs))
    ours.load_state_dict(LAYOUTS["authors"].to_ours(authors_state()))
    images = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = theirs.double()(images)
        torch.testing.assert_close(ours.double()(images), expected, rtol=0, atol=1e-10)
    assert expected.std() > 0.1


def test_words_keep_their_places():
    """timm's table is a map of channels, the authors' a list of words; row by row in both."""
    table = torch.arange(12 * 16.0).reshape(1, 12, 4, 4)
    (word_table,) = LAYOUTS["timm"].to_ours({"pixel_pos": table}).values()
    assert torch.equal(word_table[0, 6], table[0, :, 1, 2])
    listed = LAYOUTS["authors"].to_ours({"inner_pos": word_table})
    assert torch.equal(listed["word_pos.table"], word_table)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    "extra",
    [
        "blocks.0.se_layer.fc.0.weight",
        "blocks.1.mystery",
        "head_dist.weight",
        "cls_token.weight",
        "module.cls_token",
    ],
)
def test_an_unknown_name_is_refused_by_name(name, extra):
    with pytest.raises(UserError, match=repr(extra)):
        LAYOUTS[name].to_ours({**STATES[name](), extra: torch.zeros(1)})


@pytest.mark.parametrize(("name", "other"), [("timm", "authors"), ("authors", "timm")])
def test_one_s_names_are_not_the_other_s(name, other):
    with pytest.raises(UserError, match="expected only names that it has"):
        LAYOUTS[name].to_ours(STATES[other]())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_by_its_own_checkpoints_only(name):
    names = set(STATES[name]())
    fitting = [
        (system.name, layout.name)
        for system in SYSTEMS
        for layout in system.layouts
        if set(layout.fingerprint) <= names
    ]
    assert fitting == [("TNT", name)]


def test_the_first_version_is_refused_with_what_it_is():
    with pytest.raises(UserError, match=r"first arXiv version \(timm's tnt_s_legacy\)"):
        LAYOUTS["timm"].to_ours(timm_model("tnt_s_legacy_patch16_224").state_dict())
