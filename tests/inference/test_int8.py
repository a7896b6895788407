"""Int8: real agreement with trained weights, what is calibrated on, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cvt
from cvt.data import Batch, eval_transform, load_split, make_eval_loader
from cvt.errors import UserError
from cvt.inference import Calibration, agreement, calibration_images
from randomise import randomise

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture(scope="module")
def demo():
    return cvt.load("cvt_nano_32.cifar10")


def digits(demo, count):
    """Scans of digits: images that come along, though the demo model knows other things."""
    return calibration_images(demo, Calibration("digits", num_images=count))


def test_calibration_is_on_the_models_own_preprocessing(demo, photos):
    transform = eval_transform(demo.record.preprocessing)
    found = calibration_images(demo, str(photos))
    assert found.shape == (4, 3, 32, 32)
    assert found.dtype == torch.float32
    assert torch.equal(found[0], transform(Image.open(photos / "a.jpg")))
    assert torch.equal(calibration_images(demo, photos), found)
    some = calibration_images(demo, Calibration(photos, num_images=2))
    assert torch.equal(some, found[[0, 3]])


def test_class_folders_and_parquet_files_are_read(demo, tmp_path):
    for name, shade in (("dark", 0), ("light", 255)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / name / "one.png")
    found = calibration_images(demo, tmp_path)
    assert found.shape == (2, 3, 32, 32)
    assert found[0].max() < 0 < found[1].min()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [
        {"bytes": (tmp_path / name / "one.png").read_bytes(), "path": name}
        for name in ("dark", "light")
    ]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "some.parquet")
    assert torch.equal(calibration_images(demo, tmp_path / "some.parquet"), found)


def test_batches_are_taken_with_or_without_labels(demo):
    batch = torch.arange(24.0).reshape(2, 3, 2, 2)
    labels = torch.zeros(2, dtype=torch.int64)
    for batches in (
        batch,
        [batch],
        ((batch, labels), (batch, labels)),
        iter([Batch(batch, labels, labels)]),
    ):
        found = calibration_images(demo, Calibration(batches, num_images=2))
        assert torch.equal(found, batch)
    assert len(calibration_images(demo, Calibration([batch, batch], num_images=3))) == 3


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (None, "without calibration images"),
        ([], "Got no calibration images"),
        ([torch.zeros(3, 8, 8)], r"shape \(3, 8, 8\)"),
        ([torch.zeros(1, 3, 8, 8, dtype=torch.uint8)], r"torch.uint8, expected images"),
        ([torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9)], "prepare them all alike"),
        ([7], "Got a batch of 7"),
        ("no/such/folder", "There is no data at"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(demo, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        calibration_images(demo, wrong)


def test_unreadable_images_are_passed_over(demo, photos, tmp_path):
    (photos / "a.jpg").write_bytes(b"not an image")
    assert len(calibration_images(demo, photos)) == 3
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="Got no image in"):
        calibration_images(demo, tmp_path / "bad")
    with pytest.raises(UserError, match="num_images 0"):
        Calibration(photos, num_images=0)


def test_a_model_that_says_nothing_gets_no_images(photos):
    with pytest.raises(UserError, match="does not say how to prepare"):
        calibration_images(torch.nn.Linear(1, 1), photos)


# Of eight images that a random network tells apart by little, one may become another class: with
# VNNI products are exact in int8, without they are not.
@pytest.mark.filterwarnings("ignore:In int8 the network does not quite say")
def test_openvino_in_int8_agrees_with_float32():
    """A tiny network, since NNCF is slow: one linear map has to be there, not twenty."""
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    stage = cvt.StageSpec(embed_dim=32, depth=1, num_heads=1, embed_kernel=7, embed_stride=4)
    spec = cvt.BackboneSpec(stages=(stage,), num_classes=9, img_size=32, global_pool="avg")
    model = randomise(cvt.Backbone(spec))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    deployed = cvt.deploy(model, dtype="int8", engine="openvino", calibration=images)
    found = deployed.agreement
    assert found.num_images == 8
    # It is in int8 at all, and as good as 7 bits can be.
    assert 1e-3 < found.relative_mean < 0.1
    assert "int8 and" in repr(deployed)
    again = agreement(model, deployed, images)
    assert again.relative_mean == pytest.approx(found.relative_mean, rel=0.1)
    kinds = [each.get_type_name() for each in deployed.graphs[0].model.get_ops()]
    assert kinds.count("FakeQuantize") >= 2 * 4
    # The ranges hold for other sizes too, since the graph does.
    assert deployed(torch.zeros(1, 3, 40, 48)).shape == (1, 9)
    bounds = deployed.graphs[0].bounds
    object.__setattr__(deployed.graphs[0], "bounds", (*bounds[:2], (32, 32), (32, 32)))
    with pytest.raises(UserError, match="64 x 64 pixels, which the calibrated graph does not take"):
        deployed(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("package", ["nncf", "openvino"])
def test_without_the_packages_the_extras_are_named(demo, monkeypatch, package):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'cvt\[.*openvino"):
        cvt.deploy(demo, dtype="int8", engine="openvino", calibration=torch.zeros(1, 3, 32, 32))


def test_openvino_in_int8_needs_images(demo):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    with pytest.raises(UserError, match="Got dtype int8 without calibration images"):
        cvt.deploy(demo, dtype="int8", engine="openvino")


def test_torch_in_int8_agrees_with_float32(demo):
    pytest.importorskip("torchao")
    images = digits(demo, 4)
    before = {name: value.clone() for name, value in demo.state_dict().items()}
    deployed = cvt.deploy(demo, dtype=torch.int8, calibration=images)
    assert deployed.agreement.num_images == 4
    assert 1e-4 < deployed.agreement.relative_mean < 0.05
    assert "Backbone in int8" in repr(deployed)
    assert type(deployed.network.head.weight) is torch.nn.Parameter
    attn = deployed.network.stages[0].blocks[0].attn
    assert type(attn.proj.weight).__name__.startswith("Int8")
    assert all(torch.equal(value, before[name]) for name, value in demo.state_dict().items())
    assert cvt.deploy(demo, dtype="int8").agreement is None


def test_without_torchao_the_extra_is_named(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"pip install 'cvt\[torchao\]'"):
        cvt.deploy(demo, dtype="int8")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason="needs the images beside the checkout")
def test_openvino_in_int8_keeps_99_answers_in_100_on_real_images(demo):
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    calibration = Calibration(CIFAR10 / "train.parquet", num_images=300)
    deployed = cvt.deploy(demo, dtype="int8", engine="openvino", calibration=calibration)
    test = load_split(str(CIFAR10), "test")
    some = test.subset(np.linspace(0, len(test) - 1, 2000).astype(int))
    loader = make_eval_loader(some, eval_transform(demo.record.preprocessing), batch_size=100)
    found = agreement(demo, deployed, [batch.images for batch in loader])
    assert found.num_images == 2000
    assert found.top1 >= 99.0
    assert found.relative_mean < 0.02
