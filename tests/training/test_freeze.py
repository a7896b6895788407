import copy

import pytest
import torch
from torch import nn

from cvt.training.config import OptimConfig
from cvt.training.network import freeze, set_train_mode
from cvt.training.optim import make_optimizer
from cvt.zoo.create import create_model

OPTIM = OptimConfig(lr=0.1, min_lr=0.0, weight_decay=0.5, warmup_epochs=0.0, clip_grad=0.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    tiny = create_model(
        "cvt_nano_32",
        num_classes=4,
        embed_dim=[8, 8, 16],
        depth=[1, 1, 2],
        num_heads=1,
        drop_path_rate=0.5,
        drop_rate=0.5,
    )
    for name, buffer in tiny.named_buffers():  # statistics that say something
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return tiny


def moved_by_updates(model, mode):
    """Names of the parameters and buffers that three real updates change."""
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, OPTIM)
    for _ in range(3):
        set_train_mode(model, mode)
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_none_freezes_nothing(model):
    freeze(model, "none")
    moved = moved_by_updates(model, "none")
    assert moved == set(model.state_dict())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("times", [1, 2])
def test_batch_norms_stay_as_they_are(model, times):
    for _ in range(times):
        freeze(model, "bn")
    frozen = {name for name in model.state_dict() if ".bn." in name}
    assert len(frozen) == 4 * 3 * 5  # blocks; q, k, v; scale, shift, mean, variance, count
    assert moved_by_updates(model, "bn") == set(model.state_dict()) - frozen
    in_training = {kind for kind in map(type, (m for m in model.modules() if m.training))}
    assert nn.BatchNorm2d not in in_training
    assert nn.LayerNorm in in_training


@pytest.mark.parametrize("times", [1, 2])
def test_only_the_classifier_learns(model, times):
    for _ in range(times):
        freeze(model, "backbone")
    assert moved_by_updates(model, "backbone") == {"head.weight", "head.bias"}
    assert [name for name, each in model.named_modules() if each.training] == ["head"]


def test_frozen_features_are_not_dropped_out(model):
    freeze(model, "backbone")
    set_train_mode(model, "backbone")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), model(images))
    set_train_mode(model, "none")
    assert not torch.equal(model(images), model(images))


def test_going_back_from_evaluation_thaws_nothing(model):
    for mode in ("bn", "backbone"):
        freeze(model, mode)
        set_train_mode(model, mode)
        before = [name for name, each in model.named_modules() if each.training]
        model.eval()
        set_train_mode(model, mode)
        assert [name for name, each in model.named_modules() if each.training] == before


def test_batch_norms_over_all_gpus_are_frozen_as_well(model):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    freeze(model, "bn")
    set_train_mode(model, "bn")
    norms = [each for each in model.modules() if isinstance(each, nn.SyncBatchNorm)]
    assert len(norms) == 4 * 3
    assert not any(each.training or each.weight.requires_grad for each in norms)


def test_what_wraps_a_model_is_looked_through(model):
    freeze(model, "backbone")
    set_train_mode(nn.Sequential(model), "backbone")
    assert [name for name, each in model.named_modules() if each.training] == ["head"]


def test_a_frozen_backbone_still_returns_both_classifiers_logits():
    model = create_model("cvt_nano_32", num_classes=4, depth=1, distilled=True)
    model.set_distilled_training()
    freeze(model, "backbone")
    set_train_mode(model, "backbone")
    logits, dist_logits = model(torch.randn(2, 3, 16, 16))
    assert logits.shape == dist_logits.shape == (2, 4)
    assert not any(each.training for each in model.stages.modules())
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {
        "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"
    }  # fmt: skip
