"""The real images beside the checkout: CIFAR-10 in parquet, and full-size photographs."""

import numpy as np
import pytest

from cvt.data.image import open_image
from cvt.data.load import load_data
from cvt.data.loader import make_loader
from cvt.data.transforms import eval_transform
from cvt.weights.record import Preprocessing

pytestmark = pytest.mark.data


def test_cifar10(shared_data):
    pytest.importorskip("pyarrow")
    data = load_data(str(shared_data / "cifar10"))
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.val_was_cut
    assert set(np.bincount(data.val.labels)) == {500}
    transform = eval_transform(Preprocessing(input_size=(3, 32, 32), crop_pct=1.0))
    batch = next(iter(make_loader(data.test, transform, batch_size=64, shuffle=False)))
    assert batch.images.shape == (64, 3, 32, 32)
    assert not batch.bad


def test_photos(shared_data):
    photos = sorted((shared_data / "photos").glob("*.JPEG"))
    transform = eval_transform(Preprocessing())
    for photo in photos[:10]:
        image = open_image(photo)
        assert image.mode == "RGB"
        assert transform(image).shape == (3, 224, 224)
