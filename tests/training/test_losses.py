import pytest
import torch
from torch import nn

from cvt.training.config import MixConfig
from cvt.training.losses import make_loss

B, K = 6, 4
LOSSES = ("ce", "bce")


def config(loss, smoothing=0.0, mixup=0.0) -> MixConfig:
    return MixConfig(mixup=mixup, cutmix=0.0, smoothing=smoothing, loss=loss)


@pytest.fixture
def logits():
    return torch.randn(B, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 3, 0])


@pytest.fixture
def soft():
    return torch.rand(B, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written_out(loss, logits, targets) -> torch.Tensor:
    """Per picture, (B,), from probabilities (B, K)."""
    if loss == "ce":
        return -(targets * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1)
    yes, no = torch.sigmoid(logits).log(), torch.sigmoid(-logits).log()
    return -(targets * yes + (1 - targets) * no).mean(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_class_numbers_are_smoothed(loss, smoothing, logits, labels):
    targets = (1 - smoothing) * nn.functional.one_hot(labels, K) + smoothing / K
    got = make_loss(config(loss, smoothing))(logits, labels)
    assert got.item() == pytest.approx(written_out(loss, logits, targets).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mixers_probabilities_are_taken_as_they_are(loss, logits, soft):
    got = make_loss(config(loss, smoothing=0.3, mixup=0.8))(logits, soft)
    assert got.item() == pytest.approx(written_out(loss, logits, soft).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_times_the_pictures_it_is_a_sum_over_them(loss, logits, labels, soft):
    for loss_fn, targets in (
        (make_loss(config(loss, 0.1)), labels),
        (make_loss(config(loss, 0.1, mixup=0.8)), soft),
    ):
        parts = [loss_fn(logits[i:j], targets[i:j]) * (j - i) for i, j in ((0, 1), (1, 4), (4, 6))]
        assert (loss_fn(logits, targets) * B).item() == pytest.approx(sum(parts).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_bf16_rounds_no_target(loss, logits, labels):
    rough = logits.bfloat16()
    targets = 0.9 * nn.functional.one_hot(labels, K) + 0.1 / K
    expected = written_out(loss, rough.double(), targets).mean().item()
    with torch.autocast("cpu", torch.bfloat16):
        got = make_loss(config(loss, 0.1))(rough, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_two_classes_and_one_picture(logits):
    targets = torch.tensor([1])
    got = make_loss(config("bce"))(logits[:1, :2], targets)
    expected = written_out("bce", logits[:1, :2], torch.tensor([[0.0, 1.0]])).item()
    assert got.item() == pytest.approx(expected, rel=1e-6)
