"""torchvision's detectors on our feature maps, over its own feature pyramid."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

import cvt  # noqa: F401  (registers the models)

pytest.importorskip("torchvision")

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign


class Pyramid(nn.Module):
    """Feature maps by name, all of one width: what a detector asks of its backbone."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model(
            "cvt_13", features_only=True, depth=1, extra_level=True, drop_path_rate=0
        )
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, images):
        return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(self.body(images))))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return FasterRCNN(
        Pyramid(),
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        min_size=96,
        max_size=128,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=50,
    )


def test_faster_rcnn_takes_a_training_step(detector):
    """Images of two sizes, as detection has them; every weight is part of the loss."""
    images = [torch.rand(3, 96, 128), torch.rand(3, 80, 64)]
    targets = [
        {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[4.0, 10.0, 40.0, 50.0]]), "labels": torch.tensor([2])},
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    losses = detector.train()(images, targets)
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    sum(losses.values()).backward()
    body = detector.backbone.body
    before = body.model.stages[0].embed.proj.weight.detach().clone()
    optimizer.step()
    for key, parameter in body.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert not torch.equal(body.model.stages[0].embed.proj.weight, before)


def test_faster_rcnn_finds_boxes_inside_the_image(detector):
    with torch.no_grad():
        (found,) = detector.eval()([torch.rand(3, 70, 110)])
    boxes = found["boxes"]
    assert boxes.shape == (len(found["scores"]), 4)
    assert len(boxes) > 0
    assert (boxes >= 0).all()
    assert (boxes[:, ::2] <= 110).all()
    assert (boxes[:, 1::2] <= 70).all()
