"""Defects that published ports of CvT have or had: one test each, which the port would fail.

The ports: "Microsoft" is microsoft/CvT f851e68, lib/models/cls_cvt.py; "Hugging Face" is
transformers 5, models/cvt/modeling_cvt.py; "lucidrains" is lucidrains/vit-pytorch, cvt.py;
"rishikksh20" is rishikksh20/convolution-vision-transformers.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cvt
from cvt.parts.attention import Attention
from cvt.parts.mlp import QuickGELU
from cvt.systems.cvt import PAPER_ROWS, ROWS
from networks import image, meta, small

# float64 rounding adds up to some 1e-12 in these networks; every defect here is above 1e-3.
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def model():
    return small("cvt_13").double().eval()


@pytest.fixture(scope="module")
def images():
    return image("cvt_13", 2).double()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_batch_of_one_keeps_its_axis(model, images):
    """Microsoft (issue 24), PaddleViT, vformer, cvt2distilgpt2: a bare `squeeze()` drops it."""
    assert model(images[:1]).shape == (1, 1000)
    torch.testing.assert_close(model(images[:1]), model(images)[:1], **EXACT)


@pytest.mark.parametrize("projection", ["linear", "avg"])
def test_every_projection_runs_and_is_used(projection):
    """Microsoft: all-linear never assigns q, k and v. Hugging Face: both raise AttributeError."""
    network = small("cvt_13", projection=projection).double().eval()
    assert not any(".conv." in key or ".bn." in key for key in network.state_dict())
    logits = network(image("cvt_13").double())
    assert logits.shape == (2, 1000)
    maps = cvt.attention_maps(network, image("cvt_13").double())
    assert maps[0].weights.shape[2:] == ((256, 256) if projection == "linear" else (256, 81))


def test_drop_path_leaves_the_residual_alone():
    """Hugging Face drops after the second addition: a dropped sample loses its whole stream."""
    block = small("cvt_13", depth=3, drop_path_rate=1.0).stages[2].blocks[-1].train()
    tokens = torch.randn(2, 10, 384)
    out, _ = block(tokens, (3, 3), 1)
    assert torch.equal(out, tokens)


def test_no_class_token_anywhere():
    """Hugging Face: "tuple index out of range". The norm comes before the mean (Microsoft)."""
    network = small("cvt_13", cls_token=False).double().eval()
    assert not any("cls_token" in key for key in network.state_dict())
    images = image("cvt_13").double()
    *_, last = network.forward_intermediates(images, intermediates_only=True)
    tokens = network.norm(last.flatten(2).transpose(1, 2))
    torch.testing.assert_close(network(images), network.head(tokens.mean(dim=1)), **EXACT)


def test_class_token_in_an_early_stage():
    """Hugging Face makes every token as wide as the last stage: a size error in stage 1."""
    network = small("cvt_13", cls_token=(True, False, True)).eval()
    assert network.stages[0].cls_token.shape == (1, 1, 64)
    tokens, maps = network.forward_intermediates(image("cvt_13", 1))
    assert [tuple(fmap.shape[1:]) for fmap in maps] == [(64, 16, 16), (192, 8, 8), (384, 4, 4)]
    assert tokens.shape == (1, 17, 384)


def test_attention_maps_on_request(model, images):
    """Microsoft and Hugging Face return none ("NoAttention"). The shapes are q by k."""
    maps = cvt.attention_maps(model, images)
    assert [tuple(each.weights.shape) for each in maps] == [
        (2, 1, 256, 64),
        (2, 3, 64, 16),
        (2, 6, 17, 5),
        (2, 6, 17, 5),
    ]
    assert [each.num_prefix for each in maps] == [0, 0, 1, 1]
    for each in maps:
        torch.testing.assert_close(each.weights.sum(-1), torch.ones_like(each.weights[..., 0]))
        assert (each.weights > 0).all()


def written_out(block, tokens, grid, num_prefix, scale):
    """A block's attention in the plainest form: maps, heads in a loop, softmax by hand."""
    attn = block.attn
    normed = block.norm1(tokens)
    prefix, on_grid = normed[:, :num_prefix], normed[:, num_prefix:]
    fmap = on_grid.transpose(1, 2).reshape(len(tokens), -1, *grid)
    read = {}
    for name, stride in (("q", 1), ("k", 2), ("v", 2)):
        part = getattr(attn, name)
        conv = F.conv2d(
            fmap, part.conv.weight, stride=stride, padding=1, groups=part.conv.weight.shape[0]
        )
        by_channel = (1, -1, 1, 1)
        deviation = (part.bn.running_var + 1e-5).sqrt().view(by_channel)
        conv = (conv - part.bn.running_mean.view(by_channel)) / deviation
        conv = conv * part.bn.weight.view(by_channel) + part.bn.bias.view(by_channel)
        whole = torch.cat((prefix, conv.flatten(2).transpose(1, 2)), dim=1)
        read[name] = whole @ part.linear.weight.T + part.linear.bias
    width = tokens.shape[2] // attn.num_heads
    heads = []
    for head in range(attn.num_heads):
        q, k, v = (read[name][..., head * width : (head + 1) * width] for name in "qkv")
        logits = (q @ k.transpose(1, 2) * scale).exp()
        heads.append(logits / logits.sum(-1, keepdim=True) @ v)
    return torch.cat(heads, dim=-1) @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize("index", [0, 1, 2])
def test_attention_equals_the_written_out_one(model, index):
    """Whoever leaves the scale to SDPA gets (dim / heads) ** -0.5, as lucidrains does.

    Microsoft's scale is the stage's whole width ** -0.5. The class token skips the convolutions
    and joins q, k and v after them; BatchNorm uses its running statistics.
    """
    stage = model.stages[index]
    block, grid = stage.blocks[0], (5, 6)
    width = (64, 192, 384)[index]
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randn(2, stage.num_prefix + 30, width, generator=generator).double()
    got = block.attn(block.norm1(tokens), grid, stage.num_prefix)
    expected = written_out(block, tokens, grid, stage.num_prefix, width**-0.5)
    torch.testing.assert_close(got, expected, **EXACT)
    if index:
        usual = written_out(block, tokens, grid, stage.num_prefix, 64**-0.5)
        assert (got - usual).abs().max() > 1e-3


def test_fused_and_written_out_attention_agree(model, images):
    """Hugging Face and Microsoft have the slow form only; both forms of ours are one network."""
    expected = model(images)
    modules = [module for module in model.modules() if isinstance(module, Attention)]
    for module in modules:
        module.fused_attn = False
    torch.testing.assert_close(model(images), expected, **EXACT)
    for module in modules:
        module.fused_attn = True


def test_quick_gelu_is_the_default_and_gelu_a_choice(model, images):
    """Hugging Face: exact GELU, though the weights were trained with QuickGELU."""
    x = torch.linspace(-6, 6, 101).double()
    torch.testing.assert_close(QuickGELU()(x.clone()), x * torch.sigmoid(1.702 * x), **EXACT)
    for name in PAPER_ROWS:
        acts = [m for m in meta(name).modules() if isinstance(m, QuickGELU | nn.GELU)]
        assert {type(act) for act in acts} == {QuickGELU}
        assert len(acts) == sum(stage.depth for stage in ROWS[name].stages)
    exact = small("cvt_13", act_layer="gelu").double().eval()
    assert not any(isinstance(module, QuickGELU) for module in exact.modules())
    assert (exact(images) - model(images)).abs().max() > 1e-3


def test_stem_padding_is_two(model, images):
    """The usual 3 for a kernel of 7 gives the same grid at 224, but other values at its border."""
    for name in PAPER_ROWS:
        projections = [stage.embed.proj for stage in meta(name).stages]
        assert [conv.kernel_size[0] for conv in projections] == [7, 3, 3]
        assert [conv.stride[0] for conv in projections] == [4, 2, 2]
        assert [conv.padding[0] for conv in projections] == [2, 1, 1]
        assert all(conv.bias is not None for conv in projections)
    proj = model.stages[0].embed.proj
    padded = F.pad(images, (2, 2, 2, 2))
    corner = (padded[:, :, :7, :7] * proj.weight[3]).sum(dim=(1, 2, 3)) + proj.bias[3]
    torch.testing.assert_close(proj(images)[:, 3, 0, 0], corner, **EXACT)


def test_gradient_checkpointing_is_supported():
    """Hugging Face raises ValueError; what it computes is tested in test_grad_checkpointing.py."""
    network = small("cvt_13", depth=1).train()
    network.set_grad_checkpointing()
    with torch.enable_grad():
        network(image("cvt_13")).sum().backward()
    assert network.stages[0].embed.proj.weight.grad.abs().max() > 0


def test_keys_and_values_have_convolutions_of_their_own():
    """lucidrains: k and v share one depthwise convolution."""
    network = small("cvt_13").eval()
    attn = network.stages[0].blocks[0].attn
    assert len({id(part.conv.weight) for part in (attn.q, attn.k, attn.v)}) == 3
    before = network(image("cvt_13", 1))
    attn.v.conv.weight.mul_(2)
    assert (network(image("cvt_13", 1)) - before).abs().max() > 1e-3
    keys = cvt.attention_maps(network, image("cvt_13", 1))[0].weights
    attn.v.conv.weight.mul_(2)
    assert torch.equal(cvt.attention_maps(network, image("cvt_13", 1))[0].weights, keys)


def test_class_token_skips_the_convolutions(model):
    """Told apart by zero kernels: the map is then constant, and the class token still linear."""
    part = small("cvt_13").double().eval().stages[2].blocks[0].attn.q
    part.conv.weight.zero_()
    tokens = torch.randn(2, 13, 384).double()
    out = part(tokens, (3, 4), 1)
    torch.testing.assert_close(out[:, 0], part.linear(tokens[:, 0]), **EXACT)
    assert (out[:, 1:] - out[:, 1:2]).abs().max() < 1e-9


def test_projection_is_convolution_norm_linear(model):
    """lucidrains has no bias in q, k and v; users asked why a linear map follows (issues 9, 10)."""
    attn = model.stages[1].blocks[0].attn
    for name in "qkv":
        part = getattr(attn, name)
        assert isinstance(part.bn, nn.BatchNorm2d)
        assert part.conv.bias is None
        assert part.conv.groups == part.conv.in_channels == 192
        assert part.linear.bias is not None
    assert attn.proj.bias is not None


def test_there_is_a_final_norm(model, images):
    """lucidrains has none; it is applied to tokens once, after the last stage."""
    assert isinstance(model.norm, nn.LayerNorm)
    tokens = model.forward_features(images)
    centred = (tokens - model.norm.bias) / model.norm.weight
    torch.testing.assert_close(centred.mean(-1), torch.zeros_like(tokens[..., 0]), **EXACT)


def test_batch_norm_uses_running_statistics_in_eval(model, images):
    """A row's logits don't depend on who shares its batch; in training they do."""
    other = torch.cat((images[:1], images[1:] * 5 + 2))
    torch.testing.assert_close(model(images)[:1], model(other)[:1], **EXACT)
    network = small("cvt_13", drop_path_rate=0).double().train()
    assert (network(images)[:1] - network(other)[:1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (50, 79)], ids=str)
def test_images_need_not_be_square(size):
    """Ports that take the square root of the token count fail, or silently mix rows up."""
    network = small("cvt_13", depth=1).eval()
    maps = network.forward_intermediates(image("cvt_13", 1, size), intermediates_only=True)
    for fmap, stride in zip(maps, (4, 8, 16), strict=True):
        # The stem's padding of 2 makes floor((n - 3) / 4) + 1 rows; the others round n / 2 up.
        stem = [(side - 3) // 4 + 1 for side in size]
        assert list(fmap.shape[2:]) == [-(-side * 4 // stride) for side in stem]
    # One stage's map, read row by row: its first row doesn't depend on the image's last.
    changed = image("cvt_13", 1, size)
    changed[:, :, -8:] = 0
    embed = network.stages[0].embed
    (before, grid), (after, _) = embed(image("cvt_13", 1, size)), embed(changed)
    same = (before == after).all(dim=2).unflatten(1, grid)[0]
    assert same[: grid[0] - 3].all()
    assert not same[-1].any()


def test_frozen_batch_norm_and_two_sizes_in_one_network():
    """MixFormer had to fork CvT for this: no class token, two sizes, frozen statistics."""
    network = small("cvt_13", cls_token=False, depth=(1, 1, 1)).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = [buffer.clone() for buffer in network.buffers()]
    template = network.forward_intermediates(image("cvt_13", 1), intermediates_only=True)[-1]
    search = network.forward_intermediates(image("cvt_13", 1, (96, 96)), intermediates_only=True)[
        -1
    ]
    assert (template.shape[2:], search.shape[2:]) == ((4, 4), (6, 6))
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))
