"""Each pass by itself: it changes the network, and not what it returns."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cvt
import networks
from cvt.errors import UserError
from cvt.inference import PASSES
from cvt.inference.forms import AttentionForm, BlockForm, StagedForm, inference_copy
from cvt.inference.passes import ALGEBRA, LAYOUT, chosen_passes
from cvt.parts.mlp import QuickGELU
from cvt.parts.projection import ConvProjection
from cvt.systems.catalog import ROWS

ALL = ALGEBRA | LAYOUT
EXACT = {"atol": 1e-10, "rtol": 1e-10}

# How many places each pass rewrites in the small networks: 0 where it has nothing to do. Packing
# has none in float64, see `test_onednn.py`.
PLACES = {
    # four blocks of three convolutions; four second norms and the last; prefix and 15 kernels
    "cvt_13": {"batchnorm": 12, "norm_affine": 5, "quick_gelu": 4, "channels_last": 16},
    "cvt_nano_32": {"batchnorm": 12, "norm_affine": 5, "quick_gelu": 4, "channels_last": 15},
    # linear projections let the first norms go as well; one of four reductions has none
    "vit_small_patch16_224": {"norm_affine": 5, "channels_last": 1},
    "deit_nano_32": {"norm_affine": 5, "channels_last": 1},
    "cpvt_small": {"norm_affine": 5, "channels_last": 2},
    "cpvt_tiny_gap": {"norm_affine": 5, "channels_last": 3},
    "twins_pcpvt_small": {"norm_affine": 11, "channels_last": 11},
    "pvt_nano_32": {"norm_affine": 9, "channels_last": 5},
    "t2t_nano_32": {"norm_affine": 9, "channels_last": 1},
    "t2t_vit_t_14": {"norm_affine": 9, "channels_last": 1},
    "tnt_nano_32": {"norm_affine": 12, "channels_last": 1},
}
ATTENTIONS = {"vit_small_patch16_224": 2, "twins_pcpvt_small": 5, "t2t_nano_32": 2}
ATTENTIONS |= {"deit_nano_32": 2, "cpvt_small": 2, "cpvt_tiny_gap": 2, "t2t_vit_t_14": 2}
REPEATED = ("class_token", "channels_last", "slices")
TOKEN_POOLED = [name for name in networks.NAMES if ROWS[name].global_pool == "token"]


def form(name: str, **changes) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network in inference forms, images, and what the training form makes of them."""
    model = networks.small(name, **changes).double().eval()
    images = networks.image(name, 3).double()
    with torch.no_grad():
        return inference_copy(model), images, model(images)


def places(name: str, key: str) -> int:
    """How many places a pass has to rewrite."""
    if key in ("attention_scale", "attention_biases"):
        of_token_layers = 2 if (name, key) == ("t2t_vit_t_14", "attention_scale") else 0
        return ATTENTIONS.get(name, 4) + of_token_layers
    if key == "class_token":
        return int(name in TOKEN_POOLED)
    if key == "slices":
        return ATTENTIONS.get(name, 4)
    return PLACES[name].get(key, 0)


@torch.no_grad()
@pytest.mark.parametrize("name", networks.NAMES)
def test_each_pass_alone_rewrites_its_places_and_keeps_the_outputs(name):
    fresh, images, expected = form(name)
    torch.testing.assert_close(fresh(images), expected, **EXACT)
    for key in PASSES:
        network = copy.deepcopy(fresh)
        apply = ALL[key]
        got = apply(network)
        if key == "slices":
            in_slices(network, 1000)
        # T2T's and TNT's linear maps have no biases to drop until a norm gives them some.
        is_bare = name.startswith(("t2t", "tnt")) and key == "attention_biases"
        assert got == (0 if is_bare else places(name, key)), key
        if got:
            torch.testing.assert_close(network(images), expected, **EXACT, msg=key)
        assert apply(network) == (got if key in REPEATED else 0), key


def in_slices(network, num_bytes):
    """Networks as small as these have no slices of the usual size."""
    for each in network.modules():
        if isinstance(each, BlockForm):
            each.slice_bytes = num_bytes


def test_batchnorm_is_gone_and_its_statistics_are_in_the_kernels():
    network, images, expected = form("cvt_13")
    projection = next(each for each in network.modules() if isinstance(each, ConvProjection))
    factor = projection.bn.weight / (projection.bn.running_var + projection.bn.eps).sqrt()
    kernel = projection.conv.weight * factor[:, None, None, None]
    ALGEBRA["batchnorm"](network)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    torch.testing.assert_close(projection.conv.weight, kernel, **EXACT)
    projection.conv.bias.add_(0.1)
    assert not torch.allclose(network(images), expected)


def test_norms_lose_their_affine_part_only_where_linear_maps_read_them():
    network, *_ = form("cvt_13")
    ALGEBRA["norm_affine"](network)
    blocks = [each for each in network.modules() if isinstance(each, BlockForm)]
    assert [block.norm1.elementwise_affine for block in blocks] == [True] * 4
    assert [block.norm2.elementwise_affine for block in blocks] == [False] * 4
    assert not network.norm.elementwise_affine
    assert network.stages[0].embed.norm.elementwise_affine


@pytest.mark.parametrize("changes", [{}, {"global_pool": ""}])
def test_the_last_norm_keeps_its_affine_part_without_a_classifier(changes):
    network, images, expected = form("cvt_nano_32", **{"num_classes": 0, **changes})
    ALGEBRA["norm_affine"](network)
    assert network.norm.elementwise_affine
    torch.testing.assert_close(network(images), expected, **EXACT)


def test_scale_goes_into_the_queries():
    network, *_ = form("cvt_13")
    attention = network.stages[0].blocks[0].attn
    weight, scale = attention.q.linear.weight.clone(), attention.scale
    ALGEBRA["attention_scale"](network)
    assert attention.scale == 1.0
    torch.testing.assert_close(attention.q.linear.weight, weight * scale, **EXACT)


def test_keys_and_values_lose_their_biases():
    network, images, expected = form("cvt_13")
    ALGEBRA["attention_biases"](network)
    for module in network.modules():
        if isinstance(module, AttentionForm):
            assert module.k.linear.bias is None
            assert module.v.linear.bias is None
            assert module.q.linear.bias is not None
    network.stages[2].blocks[0].attn.proj.bias[0] += 0.1
    assert not torch.allclose(network(images), expected)


def test_biases_that_a_norm_brought_are_carried_as_well():
    """T2T's maps have none of their own; the first norm's, folded, becomes one."""
    network, images, expected = form("t2t_vit_t_14")
    assert network.stages[2].blocks[0].attn.proj.bias is not None
    ALGEBRA["norm_affine"](network)
    assert network.stages[2].blocks[0].attn.v.linear.bias is not None
    assert ALGEBRA["attention_biases"](network) == 2
    torch.testing.assert_close(network(images), expected, **EXACT)


@pytest.mark.parametrize("act_layer", ["quick_gelu", "gelu", "silu", "relu"])
def test_activations_are_rewritten_where_there_is_something_to_win(act_layer):
    network, images, expected = form("cvt_nano_32", act_layer=act_layer)
    assert ALGEBRA["quick_gelu"](network) == (0 if act_layer == "gelu" else 4)
    assert not any(isinstance(each, QuickGELU) for each in network.modules())
    torch.testing.assert_close(network(images), expected, **EXACT)


@pytest.mark.parametrize("name", TOKEN_POOLED)
def test_the_last_block_gives_its_prefix_only(name):
    network, images, expected = form(name)
    last = [each for each in network.modules() if isinstance(each, BlockForm)][-1]
    seen = []
    last.mlp.fc1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    ALGEBRA["class_token"](network)
    torch.testing.assert_close(network(images), expected, **EXACT)
    assert seen == [2 if name == "deit_nano_32" else 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"projection": "linear"},
        {"projection": "avg"},
        {"projection": "reduction", "kv_stride": 2},
        {"kv_stride": 1},
        {"q_stride": (1, 1, 2), "depth": 1},
        {"pos_embed": ("none", "none", "conditional"), "peg_depth": 2},
        {"pos_embed": ("none", "none", "table"), "img_size": 64},
        {"distilled": True},
        {"qkv_bias": False, "attn_scale": "head_dim"},
    ],
)
def test_the_last_block_of_any_choice_gives_its_prefix_only(changes):
    network, images, expected = form("cvt_13", **changes)
    assert ALGEBRA["class_token"](network) == 1
    torch.testing.assert_close(network(images), expected, **EXACT)


@pytest.mark.parametrize("changes", [{"global_pool": "avg"}, {"global_pool": "", "num_classes": 0}])
def test_a_network_whose_tokens_are_all_read_computes_all(changes):
    network, *_ = form("cvt_13", **changes)
    assert ALGEBRA["class_token"](network) == 0


def test_a_network_inside_another_module_may_be_asked_for_more():
    """A module around it may read tokens that the network's own classifier does not."""
    whole = nn.Sequential(networks.small("cvt_13")).double().eval()
    inner = inference_copy(whole)
    assert not isinstance(inner[0], StagedForm)
    assert ALGEBRA["class_token"](inner) == 0
    assert ALGEBRA["norm_affine"](inner) == 4


def test_passes_are_chosen_by_leaving_out():
    assert chosen_passes(()) == PASSES
    assert chosen_passes(["pack", "batchnorm"]) == tuple(PASSES[1:-1])
    assert chosen_passes("pack") == tuple(PASSES[:-1])
    with pytest.raises(UserError, match="Did you mean 'batchnorm'"):
        chosen_passes(["batch_norm"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["cvt_13", "vit_small_patch16_224"])
def test_a_large_mlp_sees_its_tokens_in_slices(name):
    network, images, expected = form(name)
    seen = []
    block = network.stages[0].blocks[0]
    block.mlp.fc1.register_forward_hook(lambda _, args, out: seen.append(out.nbytes))
    network(images)
    (whole,) = seen
    for size, count in ((whole, 1), (whole // 2, 1), (whole // 3, 3), (whole // 5, 5)):
        in_slices(network, size)
        seen.clear()
        torch.testing.assert_close(network(images), expected, **EXACT)
        assert sum(seen) == whole
        assert len(seen) == count


# --- What is copied on the way: nothing as large as the tokens of a stage.

_COPIES = ("aten.clone", "aten.copy_", "aten.contiguous", "aten._to_copy", "aten.cat")


class Copies(TorchDispatchMode):
    """Notes the largest copy, in numbers, and every operator's input that is not without gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.gaps: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name in _COPIES:
            self.sizes.append(out.numel())
        if "convolution" in name and not _has_no_gaps(args[0]):
            self.gaps.append(f"{name} {tuple(args[0].shape)}")
        if "layer_norm" in name and not args[0].is_contiguous():
            self.sizes.append(args[0].numel())
        return out


def _has_no_gaps(fmap: torch.Tensor) -> bool:
    return fmap.is_contiguous(memory_format=torch.channels_last)


def copies(name, batch, size, **options):
    model = cvt.deploy(networks.small(name), **options)
    images = networks.image(name, batch, size).contiguous(memory_format=torch.channels_last)
    with Copies() as noted:
        model(images)
    return noted


@pytest.mark.parametrize("name", ["cvt_13", "cvt_nano_32"])
def test_nothing_as_large_as_the_tokens_is_copied(name):
    batch, size = 3, (128, 128)
    noted = copies(name, batch, size)
    model = networks.small(name)
    grids = model.spec.grids(size)
    tokens = [h * w * s.embed_dim for (h, w), s in zip(grids, model.spec.stages, strict=True)]
    assert noted.gaps == []
    # Keys and values of the class token's stage, a quarter of its tokens, are put together.
    assert max(noted.sizes, default=0) < batch * min(tokens) / 2


def test_without_the_pass_there_are_such_copies():
    noted = copies("cvt_13", 3, (128, 128), without=["channels_last"])
    assert len(noted.gaps) >= 3
    assert max(noted.sizes) >= 3 * 8 * 8 * 384


def test_one_image_travels_in_one_tensor():
    """Behind the prefix of a single image the grid has no gaps."""
    noted = copies("cvt_13", 1, (128, 128))
    assert noted.gaps == []
    prefixed = [size for size in noted.sizes if size == (1 + 64) * 384]
    assert len(prefixed) == 2  # the class token joins the stage, and its queries
