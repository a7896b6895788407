"""A second token with a classifier of its own (DeiT), in the networks that it is asked for in."""

import pytest
import torch
import torch.nn.functional as F

import cvt
from networks import changes_of, image, small
from randomise import randomise

CHANGED = {
    "deit_nano_32": {},
    "cvt_13": {"distilled": True},  # has a class token
    "cvt_nano_32": {"distilled": True},  # has none, and takes the mean
    "pvt_nano_32": {"distilled": True},
}


@pytest.fixture(params=CHANGED)
def name(request):
    return request.param


def distilled(name: str):
    return randomise(cvt.create_model(name, **changes_of(name), **CHANGED[name]))


def test_a_pair_only_in_training_and_only_when_asked(name):
    model = distilled(name).eval()
    with torch.no_grad():
        evaluated = model(image(name))
        model.set_distilled_training(True)
        assert torch.equal(model(image(name)), evaluated)
    model = model.train()
    logits, dist_logits = model(image(name))
    assert logits.shape == dist_logits.shape == (2, model.num_classes)
    assert not torch.equal(logits, dist_logits)
    model.set_distilled_training(False)
    assert model(image(name)).shape == (2, model.num_classes)


def test_each_classifier_reads_its_token_and_eval_takes_the_mean(name):
    model = distilled(name).double().eval()
    with torch.no_grad():
        tokens = model.forward_features(image(name).double())
        head, head_dist = model.get_classifier()
        by_class = F.linear(tokens[:, 0], head.weight, head.bias)
        by_teacher = F.linear(tokens[:, 1], head_dist.weight, head_dist.bias)
        expected = (by_class + by_teacher) / 2
        torch.testing.assert_close(model.forward_head(tokens), expected, rtol=0, atol=1e-12)
        pooled = model.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(pooled, tokens[:, :2].mean(dim=1), rtol=0, atol=1e-12)


def test_both_losses_reach_every_parameter(name):
    model = distilled(name).train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    model.set_distilled_training()
    first, second = model(image(name))
    (first.square().mean() + second.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.stages[-1].dist_token.grad.abs().max() > 0
    assert model.head_dist.weight.grad.abs().max() > 0


def test_it_needs_the_tokens_to_pool_from():
    model = small("deit_nano_32")
    with pytest.raises(cvt.UserError, match="the distillation token stands beside it"):
        model.reset_classifier(5, "avg")
    assert (model.num_classes, model.global_pool) == (10, "token")
    with pytest.raises(cvt.UserError, match="distilled=True"):
        small("cvt_13", distilled=True, cls_token=False)


def test_asking_for_it_brings_a_class_token_and_pools_from_both():
    model = small("cvt_nano_32", distilled=True)
    assert (model.global_pool, model.num_prefix_tokens) == ("token", 2)
    assert [stage.num_prefix for stage in model.stages] == [0, 0, 2]
    assert model.no_weight_decay() == {"stages.2.cls_token", "stages.2.dist_token"}
    plain = small("cvt_nano_32")
    added = {"stages.2.cls_token", "stages.2.dist_token", "head_dist.weight", "head_dist.bias"}
    assert set(model.state_dict()) - set(plain.state_dict()) == added


def test_without_a_classifier_the_mean_of_both_tokens_comes_out():
    model = small("deit_nano_32", num_classes=0).eval()
    with torch.no_grad():
        tokens = model.forward_features(image("deit_nano_32"))
        assert torch.equal(model(image("deit_nano_32")), tokens[:, :2].mean(dim=1))
