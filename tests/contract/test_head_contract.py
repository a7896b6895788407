"""The classifier's side of timm's contract: pooling, pre-logits, taking it off and back on."""

import pytest
import torch
from torch import nn

import cvt
from networks import DISTILLED, FORMS, NAMES, classifiers, image, meta, small

POOLED_FROM_ONE = [name for name in NAMES if name not in DISTILLED]


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_features_then_head(name):
    model = small(name).eval()
    images = image(name)
    with torch.no_grad():
        tokens = model.forward_features(images)
        pooled = model.forward_head(tokens, pre_logits=True)
        grid = model.spec.grids(images.shape[2:])[-1]
        assert tokens.shape == (
            2,
            model.num_prefix_tokens + grid[0] * grid[1],
            model.num_features,
        )
        assert pooled.shape == (2, model.head_hidden_size) == (2, model.num_features)
        assert torch.equal(model.forward_head(tokens), model(images))
        if len(classifiers(model)) == 1:
            assert torch.equal(model.get_classifier()(pooled), model(images))


@pytest.mark.parametrize("name", POOLED_FROM_ONE)
def test_pooling_is_the_class_token_or_the_mean_of_the_grid(name):
    model = small(name).double().eval()
    prefix = model.num_prefix_tokens
    with torch.no_grad():
        tokens = model.forward_features(image(name).double())
        pooled = model.forward_head(tokens, pre_logits=True)
        mean = tokens[:, prefix:].sum(dim=1) / (tokens.shape[1] - prefix)
        expected = tokens[:, 0] if model.global_pool == "token" else mean
        torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
        model.reset_classifier(0, "avg")
        torch.testing.assert_close(model.forward_head(tokens), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier(name):
    model = small(name).eval()
    images = image(name)
    with torch.no_grad():
        tokens = model.forward_features(images)
        pooled = model.forward_head(tokens, pre_logits=True)
        pool = model.global_pool

        model.reset_classifier(7)
        assert model(images).shape == (2, 7)
        assert (model.num_classes, model.global_pool) == (7, pool)
        assert all(each.out_features == 7 for each in classifiers(model))
        assert model.spec.num_classes == 7

        model.reset_classifier(0)
        assert all(isinstance(each, nn.Identity) for each in classifiers(model))
        assert torch.equal(model(images), pooled)

        model.reset_classifier(0, "")
        assert (model.num_classes, model.global_pool) == (0, "")
        assert torch.equal(model(images), tokens)

        pool = "token" if name in DISTILLED else "avg"
        model.reset_classifier(5, pool)
        assert model.global_pool == model.spec.global_pool == pool
        assert model(images).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier_keeps_precision_and_the_other_weights(name):
    model = small(name).to(torch.bfloat16)
    before = {key: t.clone() for key, t in model.state_dict().items() if "head" not in key}
    model.reset_classifier(7)
    assert model.head.weight.dtype == torch.bfloat16
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", NAMES)
def test_built_without_a_classifier(name):
    pooled = small(name, num_classes=0).eval()
    tokens = small(name, num_classes=0, global_pool="").eval()
    assert all(isinstance(each, nn.Identity) for each in classifiers(pooled))
    assert not [key for key in pooled.state_dict() if key.startswith("head")]
    with torch.no_grad():
        assert pooled(image(name)).shape == (2, pooled.num_features)
        out = tokens(image(name))
        assert torch.equal(out, tokens.forward_features(image(name)))
        assert torch.equal(tokens.forward_head(out), out)


def test_token_pooling_without_a_class_token_is_refused():
    model = small("cvt_13", cls_token=False)
    assert (model.global_pool, model.num_prefix_tokens) == ("avg", 0)
    with pytest.raises(cvt.UserError, match="needs a class token"):
        model.reset_classifier(5, "token")
    assert model.num_classes == 1000
    with pytest.raises(cvt.UserError, match="Got 'max' for global_pool"):
        model.reset_classifier(5, "max")


@pytest.mark.parametrize("name", POOLED_FROM_ONE)
def test_classifier_drop_out_is_the_last_thing_before_the_classifier(name):
    model = small(name, drop_rate=0.5).train()
    pooled = model.forward_head(torch.ones(4, 17, model.num_features), pre_logits=True)
    assert set(pooled.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_takes_another_classifier(name):
    model = meta(name).eval()
    heads = classifiers(model)
    assert len(heads) == 1 + ("distilled" in name or name in DISTILLED)
    assert all(head.out_features == model.num_classes for head in heads)
    model.reset_classifier(7)
    least = torch.empty(1, 3, model.spec.min_size, model.spec.min_size, device="meta")
    assert model(least).shape == (1, 7)
