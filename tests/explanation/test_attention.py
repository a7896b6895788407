import torch

import cvt


def small():
    return cvt.create_model(
        "cvt_13", embed_dim=(8, 16, 24), num_heads=(1, 2, 3), depth=(1, 1, 2), num_classes=5
    ).eval()


def test_every_attention_s_map_in_order_with_rows_that_sum_to_1(randomise):
    model = randomise(small())
    maps = cvt.attention_maps(model, torch.randn(2, 3, 48, 64))
    assert [m.name for m in maps] == [
        "stages.0.blocks.0.attn",
        "stages.1.blocks.0.attn",
        "stages.2.blocks.0.attn",
        "stages.2.blocks.1.attn",
    ]
    assert [tuple(m.weights.shape) for m in maps] == [
        (2, 1, 12 * 16, 6 * 8),
        (2, 2, 6 * 8, 3 * 4),
        (2, 3, 1 + 3 * 4, 1 + 2 * 2),
        (2, 3, 1 + 3 * 4, 1 + 2 * 2),
    ]
    assert [(m.grid, m.num_prefix) for m in maps[1:3]] == [((6, 8), 0), ((3, 4), 1)]
    for m in maps:
        torch.testing.assert_close(m.weights.sum(-1), torch.ones(m.weights.shape[:3]))
        assert m.weights.std() > 0


def test_model_is_left_as_it_was(randomise):
    model = randomise(small())
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(image)
    cvt.attention_maps(model, image)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(image), before)


def test_works_on_a_feature_extractor():
    features = cvt.create_model("cvt_nano_32", features_only=True).eval()
    assert len(cvt.attention_maps(features, torch.randn(1, 3, 32, 32))) == 4
