"""transformers' TimmBackbone: our networks inside its dense models, no class of its own needed."""

import pytest
import torch

import cvt  # noqa: F401  (registers the models)

transformers = pytest.importorskip("transformers")


def upernet():
    config = transformers.UperNetConfig(
        backbone_config=transformers.TimmBackboneConfig(backbone="cvt_13", out_indices=[0, 1, 2]),
        hidden_size=32,
        pool_scales=[1, 2],
        auxiliary_in_channels=384,
        auxiliary_channels=16,
        num_labels=4,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def test_backbone_gives_the_maps():
    config = transformers.TimmBackboneConfig(backbone="cvt_13", out_indices=[0, 1, 2])
    backbone = transformers.TimmBackbone(config).eval()
    assert backbone.channels == [64, 192, 384]
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(fmap.shape) for fmap in maps] == [
        (1, 64, 16, 24),
        (1, 192, 8, 12),
        (1, 384, 4, 6),
    ]


def test_upernet_trains():
    torch.manual_seed(0)
    model = upernet().train()
    labels = torch.randint(0, 4, (2, 64, 96))
    output = model(pixel_values=torch.randn(2, 3, 64, 96), labels=labels)
    assert output.logits.shape == (2, 4, 64, 96)
    assert output.loss.isfinite()
    output.loss.backward()
    stuck = [key for key, p in model.backbone.named_parameters() if p.grad is None]
    assert stuck == []
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters())
