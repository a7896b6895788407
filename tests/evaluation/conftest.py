"""A network that reads its answer off the image, so that every expected figure can be written."""

import pytest
import torch
from PIL import Image, ImageDraw

import cvt
from cvt.weights.record import Preprocessing, Record


@pytest.fixture
def oracle():
    """`oracle(class_names, num_classes, crop_pct)`: answers what the top left pixel says.

    After that output it thinks of the next ones, in a circle: answering 7 makes 7, 8, 9, 10, 11
    its five most likely. How sure it is does not depend on the image.
    """

    def make(class_names=None, num_classes=1000, crop_pct=1.0):
        model = cvt.create_model("cvt_nano_32", num_classes=num_classes, embed_dim=8, num_heads=1)

        def forward(image):
            high, low, _ = (255 * image[:, :, 0, 0]).round().long().T
            steps = torch.arange(num_classes) - (256 * high + low)[:, None]
            return -0.01 * (steps % num_classes).float()

        model.forward = forward
        model.record = Record(
            model="cvt_nano_32",
            spec=model.spec,
            preprocessing=Preprocessing(
                input_size=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=crop_pct
            ),
            class_names=class_names,
        )
        return model.eval()

    return make


@pytest.fixture
def write():
    """`write(path, answer)`: an image on which the oracle gives this answer.

    Only its rim says so: whoever enlarges it and cuts the middle out reads a 0.
    """

    def save(path, answer):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8, 8), (answer // 256, answer % 256, 0))
        ImageDraw.Draw(image).rectangle((2, 2, 5, 5), fill=(0, 0, 0))
        image.save(path, format="PNG")

    return save
