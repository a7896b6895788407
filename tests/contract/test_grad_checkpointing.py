"""Recomputing blocks in the backward pass changes memory, and nothing else."""

import copy

import pytest
import torch

from networks import NAMES, image, small


def step(model, images):
    torch.manual_seed(0)  # a performer's token layer has drop-out of its own
    logits = model(images)
    logits.square().mean().backward()
    return logits, {key: p.grad for key, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_same_gradients_bit_for_bit(name):
    plain = small(name, drop_path_rate=0).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    logits, gradients = step(plain, image(name))
    saved_logits, saved_gradients = step(saving, image(name))
    assert torch.equal(saved_logits, logits)
    for key, gradient in gradients.items():
        assert torch.equal(saved_gradients[key], gradient), key


@pytest.mark.parametrize("name", NAMES)
def test_same_running_statistics(name):
    """The second pass over a block sees the same batch: it must not count twice."""
    plain = small(name, drop_path_rate=0).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    step(plain, image(name))
    step(saving, image(name))
    for (key, buffer), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(buffer, other), key


def test_same_draws_of_stochastic_depth():
    plain = small("cvt_13", drop_path_rate=0.5, proj_drop_rate=0.2).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    logits, gradients = step(plain, image("cvt_13"))
    saved_logits, saved_gradients = step(saving, image("cvt_13"))
    assert torch.equal(saved_logits, logits)
    assert all(torch.equal(saved_gradients[key], gradients[key]) for key in gradients)


def test_blocks_run_twice_and_only_when_asked():
    model = small("cvt_13").train()
    runs = []
    block = model.stages[2].blocks[0]
    block.attn.register_forward_hook(lambda *_: runs.append(1))
    step(model, image("cvt_13"))
    assert len(runs) == 1
    model.set_grad_checkpointing(True)
    step(model, image("cvt_13"))
    assert len(runs) == 3
    model.set_grad_checkpointing(False)
    step(model, image("cvt_13"))
    assert len(runs) == 4


@pytest.mark.parametrize("name", NAMES)
def test_eval_and_intermediates_are_unchanged(name):
    model = small(name).eval()
    with torch.no_grad():
        expected = model.forward_intermediates(image(name))
        model.set_grad_checkpointing()
        got = model.forward_intermediates(image(name))
    assert torch.equal(got[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], expected[1], strict=True))
