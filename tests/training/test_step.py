import math

import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from cvt import create_model
from cvt.runtime import seed_position
from cvt.training.config import MixConfig
from cvt.training.losses import make_loss, make_mixer
from cvt.training.step import NonFinite, StepOptions, StepResult, train_step

OFF = MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.0, loss="ce")
ON = MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1, loss="ce")


def one_step(model, images, labels, optimizer, **options) -> StepResult:
    """An update of one chunk that is the whole batch."""
    loss_fn = make_loss(OFF)
    chunks = [(images, labels)]
    step_options = StepOptions(batch_size=len(images), **options)
    return train_step(model, chunks, loss_fn, optimizer, step_options)


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return create_model(
        "cvt_nano_32", num_classes=4, embed_dim=[8, 8, 16], depth=1, num_heads=1
    ).train()


def test_overfits_one_batch(tiny_model):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=5e-3)
    for _ in range(100):
        result = one_step(tiny_model, images, labels, optimizer, clip_grad=1.0)
    assert result.loss < 0.01


@pytest.mark.parametrize("poison", ["image", "weight"])
def test_what_is_not_finite_stops_before_it_touches_the_weights(tiny_model, poison):
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    optimizer = torch.optim.AdamW(tiny_model.parameters())
    if poison == "image":
        images[0, 0, 0, 0] = torch.nan
    else:
        nn.init.constant_(tiny_model.head.weight, torch.inf)
    before = {name: value.clone() for name, value in tiny_model.named_parameters()}
    with pytest.raises(NonFinite, match="the loss is nan, the gradient norm nan"):
        one_step(tiny_model, images, labels, optimizer)
    for name, value in tiny_model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_clipping_bounds_the_gradient_that_is_used():
    images, labels = torch.randn(4, 3, 2, 2), torch.arange(4)
    norms = {}
    for limit in (0.0, 1e-3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        before = model[1].weight.detach().clone(), model[1].bias.detach().clone()
        result = one_step(model, images, labels, optimizer, clip_grad=limit)
        moved = [
            new - old for new, old in zip((model[1].weight, model[1].bias), before, strict=True)
        ]
        norms[limit] = torch.cat([each.flatten() for each in moved]).norm().item()
    assert norms[0.0] == pytest.approx(result.grad_norm, rel=1e-5)
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_the_loss_is_timms():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    smooth = MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.1, loss="ce")
    expected = LabelSmoothingCrossEntropy(0.1)(logits, labels)
    torch.testing.assert_close(make_loss(smooth)(logits, labels), expected)
    _, soft = make_mixer(ON, 4)(torch.randn(6, 3, 8, 8), labels)
    torch.testing.assert_close(make_loss(ON)(logits, soft), SoftTargetCrossEntropy()(logits, soft))


def test_mixing_leaves_an_odd_picture_out():
    images, labels = make_mixer(ON, 4)(torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0]))
    assert images.shape == (4, 3, 8, 8)
    assert labels.shape == (4, 4)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(4))
    assert make_mixer(OFF, 4) is None


def test_bf16_is_close_and_leaves_weights_in_float32(tiny_model):
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    losses = []
    for precision in ("float32", "bf16"):
        optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.0)
        result = one_step(tiny_model, images, labels, optimizer, precision=precision)
        losses.append(result.loss)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]
    assert all(each.dtype is torch.float32 for each in tiny_model.parameters())


def test_randomness_is_a_function_of_the_position():
    import random

    import numpy as np

    def draw(*position: int) -> tuple[float, ...]:
        seed_position(*position)
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    others = [draw(0, 1, 2), draw(0, 1, 3), draw(0, 2, 2), draw(1, 1, 2)]
    assert len({value for values in others for value in values}) == 12


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_accumulation_equals_the_big_batch(opt):
    """Without batch statistics, the gradient of the mean is the mean of the gradients."""
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 4
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[opt](
            model.parameters(), lr=0.1
        )
        chunks = list(zip(images.double().chunk(parts), labels.chunk(parts), strict=True))
        for _ in range(3):
            result = train_step(
                model,
                chunks,
                nn.CrossEntropyLoss(),
                optimizer,
                StepOptions(batch_size=8, num_chunks=parts, clip_grad=0.5),
            )
        weights.append(torch.cat([each.flatten() for each in model.parameters()]))
        weights[-1] = torch.cat([weights[-1], torch.tensor([result.loss, result.grad_norm])])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-10, atol=1e-12)


def test_missing_pictures_leave_the_mean_a_mean():
    """Of a batch of eight, five are good, three of them in one chunk: the mean is over five."""
    images, labels = torch.randn(5, 3, 4, 4).double(), torch.tensor([0, 1, 2, 3, 0])
    steps = []
    for chunks in ([(images, labels)], [(images[:3], labels[:3]), (images[3:], labels[3:])]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        result = train_step(
            model,
            chunks,
            nn.CrossEntropyLoss(),
            optimizer,
            StepOptions(batch_size=5 if len(chunks) == 1 else 8, num_chunks=len(chunks)),
        )
        assert result.num_images == 5
        steps.append(torch.cat([each.flatten() for each in model.parameters()]))
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-12, atol=1e-14)


def test_a_batch_without_good_pictures_changes_nothing(tiny_model):
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=0.1, weight_decay=0.5)
    before = [each.clone() for each in tiny_model.parameters()]
    chunks = [(torch.randn(1, 3, 16, 16), torch.tensor([1]))]  # one is too few for BatchNorm
    result = train_step(tiny_model, chunks, make_loss(OFF), optimizer, StepOptions(batch_size=4))
    assert (result.loss, result.num_images) == (0, 0)
    for old, new in zip(before, tiny_model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_fp16_leaves_out_an_update_that_overflows_and_stops_at_what_no_scale_can_help():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    images, labels = torch.randn(4, 3, 4, 4), torch.arange(4)
    options = {"precision": "fp16", "scaler": scaler}
    before = model[1].weight.detach().clone()
    result = one_step(model, images, labels, optimizer, **options)
    assert not math.isfinite(result.grad_norm)
    assert torch.equal(model[1].weight, before)
    assert scaler.get_scale() == 2.0**39
    while not math.isfinite(result.grad_norm):
        result = one_step(model, images, labels, optimizer, **options)
    assert not torch.equal(model[1].weight, before)
    with pytest.raises(NonFinite):
        one_step(model, images * torch.nan, labels, optimizer, **options)
