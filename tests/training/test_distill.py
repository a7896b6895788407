"""DeiT's loss: against its authors' figures, and against its formula written out."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cvt.training.config import DistillConfig, MixConfig
from cvt.training.losses import DistillationLoss, distillation_term, make_loss
from cvt.training.step import StepOptions, train_step

GOLDEN = json.loads((Path(__file__).parent / "golden" / "deit_losses.json").read_text())
KINDS = ("hard", "soft")


def numbers(name: str) -> torch.Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss_of(kind, alpha=0.5, tau=1.0) -> DistillationLoss:
    return DistillationLoss(nn.CrossEntropyLoss(), DistillConfig(kind=kind, alpha=alpha, tau=tau))


def written_out(kind, led, taught, tau) -> float:
    """The term, number by number."""
    total = 0.0
    for ours, theirs in zip(led.tolist(), taught.tolist(), strict=True):
        if kind == "hard":
            right = theirs.index(max(theirs))
            total += math.log(sum(map(math.exp, ours))) - ours[right]
            continue
        p, q = ([math.exp(each / tau) for each in logits] for logits in (theirs, ours))
        for mine, yours in zip(p, q, strict=True):
            share = mine / sum(p)
            total += tau**2 / len(ours) * share * math.log(share / (yours / sum(q)))
    return total / len(led)


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['kind']}-{case['alpha']}-{case['targets']}"
)
def test_it_is_the_authors_loss_and_gradient(case):
    logits, dist_logits = (numbers(name).requires_grad_() for name in ("logits", "dist_logits"))
    targets = numbers(case["targets"])
    targets = targets.long() if case["targets"] == "labels" else targets
    loss_fn = loss_of(case["kind"], case["alpha"], case["tau"])
    loss = loss_fn((logits, dist_logits), targets, numbers("teacher"))
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    loss.backward()
    for each, norm in zip((logits, dist_logits), case["grad_norms"], strict=True):
        got = 0.0 if each.grad is None else each.grad.norm().item()
        assert got == pytest.approx(norm, rel=1e-12)


def test_the_authors_figures_cover_all_kinds():
    assert GOLDEN["commit"].startswith("7e160fe")
    assert {case["kind"] for case in GOLDEN["cases"]} == {"none", *KINDS}


@given(
    kind=st.sampled_from(KINDS),
    images=st.integers(1, 5),
    classes=st.integers(1, 7),
    tau=st.floats(0.5, 5.0),
    seed=st.integers(0, 1000),
)
def test_the_term_is_the_formula(kind, images, classes, tau, seed):
    led, taught = random(images, classes, seed=seed), random(images, classes, seed=seed + 1)
    got = distillation_term(led, taught, kind, tau).item()
    assert got == pytest.approx(written_out(kind, led, taught, tau), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_without_a_token_learns_from_both_with_its_only_logits(kind):
    logits, taught, labels = random(4, 5), random(4, 5, seed=1), torch.tensor([0, 1, 2, 2])
    loss_fn = loss_of(kind, alpha=0.3, tau=2.0)
    assert torch.equal(loss_fn(logits, labels, taught), loss_fn((logits, logits), labels, taught))


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_teach_the_first_logits_as_they_do_without_a_teacher(kind, loss):
    mix = MixConfig(mixup=0.8, cutmix=0.0, smoothing=0.3, loss=loss)
    distill = DistillConfig(kind=kind, alpha=0.25, tau=1.5)
    own, led, taught = (random(4, 5, seed=seed) for seed in range(3))
    targets = random(4, 5, seed=3).softmax(dim=1)
    expected = 0.75 * make_loss(mix)(own, targets).item()
    expected += 0.25 * written_out(kind, led, taught, 1.5)
    assert make_loss(mix, distill)((own, led), targets, taught).item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_times_the_pictures_it_is_a_sum_over_them(kind):
    own, led, taught = (random(6, 4, seed=seed) for seed in range(3))
    labels, loss_fn = torch.tensor([0, 1, 2, 3, 3, 0]), loss_of(kind, tau=3.0)
    parts = [
        loss_fn((own[i:j], led[i:j]), labels[i:j], taught[i:j]) * (j - i)
        for i, j in ((0, 1), (1, 4), (4, 6))
    ]
    assert sum(parts).item() == pytest.approx(6 * loss_fn((own, led), labels, taught).item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_logits_only(kind, dtype):
    led, taught = random(4, 5).to(dtype), random(4, 5, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = distillation_term(led, taught, kind, 2.0)
    assert got.dtype == torch.float32
    expected = written_out(kind, led.double(), taught.double(), 2.0)
    assert got.item() == pytest.approx(expected, rel=1e-5)


class Pair(nn.Module):
    """Two classifiers, as a distilled network has them in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, images):
        flat = images.flatten(1)
        return self.head(flat), self.head_dist(flat)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_the_big_batch(kind):
    images, labels = random(8, 3, 2, 2), torch.arange(8) % 4
    knows = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        model = Pair().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        chunks = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
        options = StepOptions(batch_size=8, num_chunks=parts, teacher=lambda x: knows(x).detach())
        result = train_step(model, chunks, loss_of(kind), optimizer, options)
        found = [result.loss, result.grad_norm]
        weights.append(torch.cat([*(each.flatten() for each in model.parameters())]))
        weights[-1] = torch.cat([weights[-1], torch.tensor(found, dtype=torch.float64)])
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-10, atol=1e-12)


def test_the_teacher_sees_what_the_student_sees():
    """The mixed picture, once for each chunk."""
    seen = {"student": [], "teacher": []}

    def teacher(images):
        seen["teacher"].append(images)
        return images.new_zeros(len(images), 4)

    model = Pair().double()
    model.register_forward_pre_hook(lambda module, args: seen["student"].append(args[0]))
    options = StepOptions(
        batch_size=8, num_chunks=2, teacher=teacher, mixer=lambda x, y: (x.flip(0) * 0.5, y)
    )
    images, labels = random(8, 3, 2, 2), torch.arange(8) % 4
    chunks = list(zip(images.chunk(2), labels.chunk(2), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, chunks, loss_of("hard"), optimizer, options)
    assert len(seen["teacher"]) == 2
    for ours, theirs, (given_images, _) in zip(
        seen["student"], seen["teacher"], chunks, strict=True
    ):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, given_images.flip(0) * 0.5)


def test_a_chunk_without_good_pictures_counts_for_nothing():
    """Yet all parameters get a gradient, for which other processes may wait."""
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    blank = torch.randn(1, 3, 2, 2), torch.tensor([1])
    good = torch.randn(4, 3, 2, 2), torch.arange(4)
    options = StepOptions(
        batch_size=8, num_chunks=2, teacher=lambda images: torch.zeros(len(images), 4)
    )
    alone = train_step(model, [blank, blank], loss_of("hard"), optimizer, options)
    assert alone.num_images == 0
    assert all(each.grad is not None for each in model.parameters())
    assert train_step(model, [good, blank], loss_of("hard"), optimizer, options).num_images == 4
