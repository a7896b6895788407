"""`torch.compile` takes deployed networks whole, unless their weights are packed."""

import pytest
import torch

import cvt
from randomise import randomise


@torch.no_grad()
def check(sizes, cls_token):
    """One graph, equal outputs; a second size makes torch compile for all sizes."""
    stage = cvt.StageSpec(embed_dim=12, depth=2, num_heads=2, cls_token=cls_token)
    pool = "token" if cls_token else "avg"
    spec = cvt.BackboneSpec(stages=(stage,), num_classes=5, global_pool=pool)
    model = randomise(cvt.Backbone(spec)).eval()
    deployed = cvt.deploy(model, without=["pack"])
    torch.compiler.reset()
    compiled = torch.compile(deployed, fullgraph=True, backend="aot_eager")
    for size in sizes:
        images = torch.randn(3, 3, *size)
        expected = model(images)
        worst = (compiled(images) - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert worst <= 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize("cls_token", [True, False])
def test_a_deployed_network_is_one_graph(cls_token):
    check([(9, 12)], cls_token)


@pytest.mark.slow
@pytest.mark.parametrize("cls_token", [True, False])
def test_a_deployed_network_is_one_graph_at_any_size(cls_token):
    check([(9, 12), (14, 11), (20, 9)], cls_token)
