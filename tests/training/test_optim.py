import math
from itertools import chain

import pytest
import torch
from torch import nn

from cvt.training.config import OptimConfig
from cvt.training.network import freeze
from cvt.training.pace import make_scheduler
from cvt.training.step import make_optimizer
from cvt.zoo.create import create_model


def config(**changes) -> OptimConfig:
    values = {
        "opt": "adamw",
        "lr": 2e-3,
        "min_lr": 1e-5,
        "weight_decay": 0.05,
        "warmup_epochs": 5.0,
        "momentum": 0.9,
        "layer_decay": 1.0,
        "clip_grad": 0.0,
    }
    return OptimConfig(**{**values, **changes})


def written_out(update: int, updates: int = 3000, warmup: int = 50) -> float:
    """The paper's curve: 2e-3 at batch 2048, down to 1e-5."""
    if update < warmup:
        return 2e-6 + (2e-3 - 2e-6) * update / warmup
    return 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(math.pi * update / updates)) / 2


def learning_rate(optimizer) -> float:
    """The classifier's, which layer decay leaves alone."""
    return max(group["lr"] for group in optimizer.param_groups)


@pytest.fixture(scope="module")
def meta_model():
    """CvT-13 with few blocks and every kind of parameter there is."""
    with torch.device("meta"):
        return create_model("cvt_13", depth=[1, 2, 2], pos_embed=["table", "none", "none"])


def names_by_group(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(each)] for each in group["params"]] for group in optimizer.param_groups]


def test_the_learning_rate_is_the_written_out_warm_up_and_cosine():
    optimizer = make_optimizer(nn.Linear(2, 2), config())
    scheduler = make_scheduler(optimizer, config(), 3000, updates_per_epoch=10)
    for update in [*range(60), 1000, 1500, 2000, 2990, 2999]:
        scheduler.step_update(update)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(written_out(update), rel=1e-9), update
        assert learning_rate(optimizer) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("epoch", "published", "tolerance"),
    # the reference's table by epochs; its warm-up starts at 1e-6 where ours does at 2e-6
    [(1, 4.0e-4, 1e-2), (4, 1.60e-3, 1e-2), (5, 1.9986e-3, 1e-4), (150, 1.005e-3, 1e-4),
     (299, 1.0055e-5, 1e-4)],
)  # fmt: skip
def test_the_learning_rate_is_the_references_by_epochs(epoch, published, tolerance):
    optimizer = make_optimizer(nn.Linear(2, 2), config())
    make_scheduler(optimizer, config(), 3000, updates_per_epoch=10).step_update(10 * epoch)
    assert learning_rate(optimizer) == pytest.approx(published, rel=tolerance)


def test_a_run_counted_in_updates_ends_its_cosine_with_them():
    optimizer = make_optimizer(nn.Linear(2, 2), config(min_lr=0.0, warmup_epochs=0.0))
    scheduler = make_scheduler(optimizer, config(min_lr=0.0, warmup_epochs=0.0), 25, 10)
    scheduler.step_update(0)
    assert learning_rate(optimizer) == 2e-3
    scheduler.step_update(24)
    assert learning_rate(optimizer) == pytest.approx(1e-3 * (1 + math.cos(math.pi * 24 / 25)))


def test_the_shortest_run_has_a_learning_rate():
    optimizer = make_optimizer(nn.Linear(2, 2), config())
    make_scheduler(optimizer, config(), 1, 1).step_update(0)
    assert optimizer.param_groups[0]["lr"] == 2e-3


def test_weight_decay_groups_are_the_references():
    with torch.device("meta"):
        model = create_model("cvt_13", pos_embed=["table", "none", "none"])
    optimizer = make_optimizer(model, config())
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.05]
    by_decay = {
        group["weight_decay"]: set(names)
        for group, names in zip(
            optimizer.param_groups, names_by_group(model, optimizer), strict=True
        )
    }
    decayed = by_decay[0.05]
    assert "stages.2.cls_token" not in decayed
    assert "stages.0.pos_embed.table" not in decayed
    assert not any(name.endswith("bias") for name in decayed)
    assert not any("norm" in name or ".bn." in name for name in decayed)
    # 3 embeddings, the head, and per block: 3 depthwise, 3 linear, proj and the MLP's two
    assert len(decayed) == 3 + 1 + 13 * (3 + 3 + 1 + 2)
    assert {"stages.0.embed.proj.weight", "stages.2.blocks.9.attn.q.conv.weight"} <= decayed


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_layer_decay_changes_no_weight_decay(meta_model, layer_decay):
    optimizer = make_optimizer(meta_model, config(layer_decay=layer_decay))
    groups = names_by_group(meta_model, optimizer)
    decayed = [
        name
        for group, names in zip(optimizer.param_groups, groups, strict=True)
        if group["weight_decay"]
        for name in names
    ]
    assert len(decayed) == 3 + 1 + 5 * (3 + 3 + 1 + 2)
    assert sorted(chain(*groups)) == sorted(name for name, _ in meta_model.named_parameters())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}


# The layers of a network of 1, 2 and 2 blocks, and the power of the decay that each gets.
LAYERS = {
    "stages.0.embed": 8,
    "stages.0.pos_embed": 8,
    "stages.0.blocks.0": 7,
    "stages.1.embed": 6,
    "stages.1.blocks.0": 5,
    "stages.1.blocks.1": 4,
    "stages.2.embed": 3,
    "stages.2.cls_token": 3,
    "stages.2.blocks.0": 2,
    "stages.2.blocks.1": 1,
    "norm": 1,
    "head": 0,
}


def test_layer_decay_is_the_written_out_table_under_the_schedule(meta_model):
    layered = config(layer_decay=0.5)
    optimizer = make_optimizer(meta_model, layered)
    scheduler = make_scheduler(optimizer, layered, 3000, updates_per_epoch=10)
    seen = set()
    for update in (0, 20, 50, 1500, 2999):
        scheduler.step_update(update)
        for group, names in zip(
            optimizer.param_groups, names_by_group(meta_model, optimizer), strict=True
        ):
            for name in names:
                layer = next(each for each in LAYERS if name.startswith(each))
                seen.add(layer)
                expected = written_out(update) * 0.5 ** LAYERS[layer]
                assert group["lr"] == pytest.approx(expected, rel=1e-9), (update, name)
        assert learning_rate(optimizer) == pytest.approx(written_out(update), rel=1e-9)
    assert seen == set(LAYERS)


def test_it_is_adamw_with_torchs_defaults():
    optimizer = make_optimizer(nn.Linear(2, 2), config())
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["fused"]


def test_sgd_is_nesterovs_and_does_not_decay_biases():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = [model.weight.detach().double(), model.bias.detach().double()]
    optimizer = make_optimizer(model, config(opt="sgd", lr=0.1, momentum=0.7, weight_decay=0.3))
    gradients = [torch.randn(2, 3), torch.randn(2)]
    moments = [torch.zeros(2, 3).double(), torch.zeros(2).double()]
    for _ in range(3):
        for index, parameter in enumerate((model.weight, model.bias)):
            parameter.grad = gradients[index].clone()
            gradient = gradients[index] + (0.3 if index == 0 else 0.0) * before[index]
            moments[index] = 0.7 * moments[index] + gradient
            before[index] = before[index] - 0.1 * (gradient + 0.7 * moments[index])
        optimizer.step()
    assert torch.allclose(model.weight.double(), before[0], atol=1e-6)
    assert torch.allclose(model.bias.double(), before[1], atol=1e-6)


def test_lamb_leaves_clipping_to_clip_grad():
    """Without clipping of its own, the direction does not depend on the gradient's size."""
    steps = []
    for size in (1.0, 1000.0):
        model = nn.Linear(2, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        optimizer = make_optimizer(model, config(opt="lamb", lr=0.1, weight_decay=0.0))
        for factor in (1.0, 3.0):  # a clipped second gradient would look like the first
            model.weight.grad = torch.tensor([[1.0, -2.0]]) * size * factor
            optimizer.step()
        steps.append(model.weight.detach().clone())
    assert torch.allclose(steps[0], steps[1], atol=1e-4)
    assert optimizer.defaults["max_grad_norm"] is None


def test_muon_makes_matrices_steps_orthogonal_and_leaves_vectors_to_adam():
    """Five steps of Newton and Schulz bring singular values to about 1, whatever they were.

    timm scales them by 0.2 * sqrt(the longer side), so that entries are as large as Adam's steps.
    """
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    nn.init.zeros_(model.weight)
    before = model.bias.detach().clone()
    optimizer = make_optimizer(model, config(opt="muon", lr=0.1, weight_decay=0.0))
    left, right = torch.linalg.qr(torch.randn(8, 8))[0], torch.linalg.qr(torch.randn(16, 16))[0]
    model.weight.grad = left @ torch.diag(torch.logspace(-1, 2, 8)) @ right[:8]
    model.bias.grad = torch.logspace(-1, 2, 8)
    optimizer.step()
    found = torch.linalg.svdvals(model.weight.detach() / (0.1 * 0.2 * 16**0.5))
    assert found.min() > 0.3  # from 1000:1
    assert found.max() < 1.5
    assert torch.allclose(before - model.bias.detach(), torch.full((8,), 0.1), rtol=1e-3)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb", "muon"])
def test_what_is_frozen_is_in_no_group(opt, weight_decay, layer_decay):
    model = create_model("cvt_nano_32", depth=1)
    freeze(model, "backbone")
    chosen = config(opt=opt, weight_decay=weight_decay, layer_decay=layer_decay)
    names = chain(*names_by_group(model, make_optimizer(model, chosen)))
    assert sorted(names) == ["head.bias", "head.weight"]
