"""What every registered network does with images: shapes, sizes, batches, precision, gradients.

Comparisons between two ways to compute one thing run in float64 unless they are about float32: a
rounding there is 1e-16 and a few hundred of them add up to less than 1e-12, so that 1e-9 tells a
different computation from a different order of sums.
"""

import copy
import json
import pickle

import pytest
import torch

import cvt
from cvt.systems.catalog import ROWS, make_network, spec_from_dict
from networks import CVT_NAMES, FORMS, NAMES, STAGED, image, small

# Mirroring the kernels mirrors the whole network: no table, no order of pixels within a token.
MIRRORED = (*CVT_NAMES[:4:3], "cpvt_small", "cpvt_tiny_gap", "twins_pcpvt_small")

SAME = {"rtol": 0, "atol": 1e-9}


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_declared_classes(name):
    model = small(name).eval()
    with torch.no_grad():
        logits = model(image(name, 2))
    assert logits.shape == (2, ROWS[name].num_classes) == (2, model.num_classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_one_equals_row_of_batch_of_four(name):
    model = small(name).double().eval()
    images = image(name, 4).double()
    with torch.no_grad():
        together = model(images)
        for index in range(4):
            alone = model(images[index : index + 1])
            assert alone.shape == (1, model.num_classes)
            torch.testing.assert_close(alone, together[index : index + 1], **SAME)


@pytest.mark.parametrize("size", [(64, 40), (40, 64), (51, 77), (33, 32)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_any_size_keeps_the_declared_grids(name, size):
    model = small(name).eval()
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(image(name, 1, size))
    grids = model.spec.grids(size)
    by_block = len(maps) // len(grids)  # a network of one stage gives a map behind each block
    assert [tuple(fmap.shape[2:]) for fmap in maps] == grids * by_block
    assert tokens.shape[1] == model.num_prefix_tokens + grids[-1][0] * grids[-1][1]
    assert tokens.isfinite().all()


@pytest.mark.parametrize("name", MIRRORED)
def test_transposed_image_and_kernels_give_the_same_logits(name):
    """Height and width are never mixed up: mirroring both the image and every kernel is neutral."""
    model = small(name).double().eval()
    mirrored = copy.deepcopy(model)
    for module in mirrored.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3).contiguous()
    images = image(name, 1, (48, 80)).double()
    with torch.no_grad():
        torch.testing.assert_close(mirrored(images.transpose(2, 3)), model(images), **SAME)


@pytest.mark.parametrize("name", NAMES)
def test_eval_is_deterministic_and_leaves_the_model_alone(name):
    model = small(name, drop_path_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5, drop_rate=0.5)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first, second = model(image(name, 2)), model(image(name, 2))
    assert torch.equal(first, second)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    model = small(name, num_classes=42, drop_path_rate=0).train()
    logits = model(image(name, 2))
    assert logits.shape == (2, 42)
    logits.square().sum().backward()
    # A key's bias shifts all logits of a query alike, which softmax doesn't see. A class token
    # skips the convolutions, so where it alone is read at the end, the last queries' convolution
    # has no say.
    idle = ("attn.k.linear.bias", "embed.k.bias")
    if model.global_pool == "token":
        idle += tuple(f"stages.2.blocks.1.attn.q.{part}" for part in ("conv", "bn"))
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0 or key.endswith(idle) or key.startswith(idle), key


@pytest.mark.parametrize("name", NAMES)
def test_one_channel(name):
    model = small(name, in_chans=1).eval()
    assert model.in_chans == 1
    with torch.no_grad():
        assert model(image(name, 2)[:, :1]).shape == (2, model.num_classes)
        with pytest.raises(cvt.UserError, match=r"expected \(batch, 1, height, width\)"):
            model(image(name, 2))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name):
    """bf16 keeps 8 bits: each rounding is off by at most 2**-9, on average 2**-10 or so.

    The path through these networks has 4 blocks of about 12 roundings each and 20 outside: about
    70, which add up as a random walk to 70**0.5 * 2**-9 = 1.6 % of a logit's size if nothing
    amplifies them. Twice that is the bound for the error's root mean square.
    """
    model = small(name).eval()
    images = image(name, 2)
    with torch.no_grad():
        exact = model(images)
        rounded = model.to(torch.bfloat16)(images.bfloat16())
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.033


@pytest.mark.parametrize("name", NAMES)
def test_autocast_trains(name):
    model = small(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(image(name, 2)).float().logsumexp(dim=1).sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_input_and_model(name):
    model = small(name).double().eval()
    images = image(name, 2).double()
    with torch.no_grad():
        expected = model(images)
        last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(last), expected, **SAME)
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(last), expected, **SAME)
        torch.testing.assert_close(model(images), expected, **SAME)


@pytest.mark.parametrize("name", FORMS)
def test_meta_device_holds_the_whole_network(name):
    """The rows at their full size: nothing is computed or allocated."""
    with torch.device("meta"):
        model = cvt.create_model(name)
        logits = model(torch.empty(2, 3, *ROWS[name].img_size))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert logits.shape == (2, ROWS[name].num_classes)
    assert model.spec == ROWS[name]


@pytest.mark.parametrize("name", NAMES)
def test_meta_model_is_filled_by_a_state_dict(name):
    source = small(name).eval()
    with torch.device("meta"):
        target = small(name, seed=None).eval()
    target.load_state_dict(source.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(target(image(name, 1)), source(image(name, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_spec_to_json_and_back_gives_the_same_logits(name):
    model = small(name).eval()
    spec = spec_from_dict(json.loads(json.dumps(model.spec.to_dict())))
    assert spec == model.spec
    again = make_network(spec).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(image(name, 1)), model(image(name, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    """EMA copies a model, data-parallel workers pickle it."""
    model = small(name).eval()
    with torch.no_grad():
        expected = model(image(name, 1))
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(clone(image(name, 1)), expected)


@pytest.mark.parametrize("name", STAGED)
def test_drop_path_of_one_makes_a_block_the_identity(name):
    """The last block of a stage, or of the network where the rate grows over all of it."""
    model = small(name, drop_path_rate=1.0).train()
    for stage in model.stages[-1:]:
        grid = (3, 5)
        tokens = torch.randn(2, stage.num_prefix + 15, model.num_features)
        out, out_grid = stage.blocks[-1](tokens, grid, stage.num_prefix)
        assert torch.equal(out, tokens)
        assert tuple(out_grid) == grid
