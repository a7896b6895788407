"""The network that a student learns from: where it is found, what it sees, what is refused."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import cvt
from cvt.errors import UserError
from cvt.training.losses import FoundTeacher, Teacher, check_teacher, find_teacher
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Record
from randomise import randomise

CPU = torch.device("cpu")
HALF = Preprocessing(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGENET = replace(HALF, mean=IMAGENET_MEAN, std=IMAGENET_STD)
NAMES = ("a", "b", "c")


@pytest.fixture
def weights(tmp_path):
    """`weights("file", ...)`: a checkpoint of a tiny network with three classes."""

    def save(name="teacher.safetensors", seed=0, class_names=NAMES, **changes):
        tiny = {"embed_dim": [8, 8, 16], "depth": 1, "num_heads": 1, "num_classes": 3}
        model = randomise(cvt.create_model("cvt_nano_32", **tiny, **changes), seed)
        record = Record(
            model="cvt_nano_32", spec=model.spec, preprocessing=IMAGENET, class_names=class_names
        )
        save_checkpoint(tmp_path / name, model.state_dict(), record)
        return str(tmp_path / name)

    return save


@pytest.fixture
def no_download(monkeypatch):
    """timm's networks without their weights; returns what was asked of timm."""
    original, asked = timm.create_model, []

    def untrained(name, pretrained=False, **changes):
        asked.append((name, pretrained, changes))
        return randomise(original(name, **changes))

    monkeypatch.setattr("timm.create_model", untrained)
    monkeypatch.setattr("cvt.zoo.create.is_out_of_reach", lambda repo_id: False)
    return asked


class Pixels(nn.Module):
    """Gives back the first pixel of what it sees, and counts what a train mode would count."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=True)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        self.norm(images)
        return images[:, :, 0, 0]


def test_it_sees_the_pixels_under_its_own_normalisation():
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def normalised(like):
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (like.mean, like.std))
        return (pixels - mean) / std

    for student, own in ((HALF, IMAGENET), (IMAGENET, HALF)):
        network = Pixels()
        Teacher(FoundTeacher(name="pixels", network=network, preprocessing=own), student, CPU)(
            normalised(student)
        )
        torch.testing.assert_close(network.seen[0], normalised(own), rtol=0, atol=1e-6)


def test_pictures_that_fit_are_left_as_they_are():
    network, images = Pixels(), torch.randn(2, 3, 4, 4)
    source = FoundTeacher(name="pixels", network=network, preprocessing=replace(HALF, crop_pct=0.5))
    Teacher(source, HALF, CPU)(images)
    assert network.seen[0] is images


def test_it_is_frozen():
    network = Pixels().train()
    teacher = Teacher(FoundTeacher(name="it", network=network, preprocessing=IMAGENET), HALF, CPU)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    answer = teacher(torch.randn(4, 3, 4, 4, requires_grad=True))
    assert not answer.requires_grad
    assert not any(each.requires_grad for each in network.parameters())
    assert not any(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert teacher.num_params == 6


def test_its_digest_is_that_of_its_weights_and_of_what_they_see(weights):
    one = find_teacher(weights(), {})
    again = find_teacher(weights("copy.safetensors"), {})
    assert one.digest() == again.digest()
    other = find_teacher(weights("other.safetensors", seed=1), {})
    seen = replace(one, preprocessing=HALF)
    resized = replace(one, preprocessing=replace(IMAGENET, input_size=(3, 32, 32)))
    assert len({one.digest(), other.digest(), seen.digest()}) == 3
    assert resized.digest() == one.digest()
    state = one.network.state_dict()
    next(each for each in state.values() if each.dtype == torch.int64).add_(1)
    assert one.digest() != again.digest(), "a counter of BatchNorm's"


def test_a_checkpoint_brings_its_preprocessing_and_its_classes(weights):
    source = find_teacher(weights(), {})
    assert (source.preprocessing, source.class_names) == (IMAGENET, NAMES)
    assert not source.network.training
    grey = find_teacher(weights(), {"in_chans": 1})
    assert grey.preprocessing.mean == pytest.approx((sum(IMAGENET_MEAN) / 3,))
    student = Preprocessing(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,))
    assert check_teacher(grey, student, NAMES) == []


def test_the_demo_model_and_published_names_are_the_front_doors(monkeypatch):
    assert find_teacher("demo", {}).network.num_classes == 10
    asked = []

    def pretrained(name, pretrained, **changes):
        asked.append((name, pretrained))
        raise UserError("That is enough.")

    monkeypatch.setattr("cvt.training.losses.create_model", pretrained)
    for name in ("cvt_13", "cvt_13.msft_in1k_384"):
        with pytest.raises(UserError, match="enough"):
            find_teacher(name, {})
    assert asked == [("cvt_13", True), ("cvt_13.msft_in1k_384", True)]


def test_a_run_folder_named_as_a_model_is_the_run(weights, tmp_path, monkeypatch):
    (tmp_path / "cvt_13").mkdir()
    weights("cvt_13/best.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find_teacher("cvt_13", {}).class_names == NAMES


def test_timms_are_asked_for_their_weights(no_download):
    source = find_teacher("timm/test_resnet.r160_in1k", {})
    assert no_download == [("test_resnet.r160_in1k", True, {})]
    assert source.preprocessing.mean == (0.5, 0.5, 0.5)
    assert source.network.num_classes == 1000
    assert not source.network.training
    classes = tuple(map(str, range(1000)))
    assert check_teacher(source, Preprocessing(input_size=(3, 64, 64)), classes) == []
    grey = find_teacher("timm/test_resnet.r160_in1k", {"in_chans": 1})
    assert grey.preprocessing.mean == (0.5,)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("timm/test_resnte", {}, r"timm has no trained weights of 'test_resnte'\. Did you mean 't"),
        ("timm/test_resnet.nothing", {}, "timm has no trained weights of 'test_resnet.nothing'"),
        ("timm/cvt_nano_32", {}, "timm has no trained weights of 'cvt_nano_32'"),
        ("timm/test_vit", {"hue": 3}, r"timm cannot build 'test_vit' with {'hue': 3}"),
        ("cvt_nano_32", {}, "no published weights for 'cvt_nano_32'"),
        ("nowhere/best.safetensors", {}, "There is no file nowhere/best.safetensors"),
        ("cvt_13.msft_in1", {}, "Unknown model 'cvt_13.msft_in1'.* Did you mean 'cvt_13.msft_in1k"),
        ("deit_tiny_patch16_224", {}, "Or take timm/deit_tiny_patch16_224, which timm has"),
        ("demo", {"num_classes": 3}, "Got teacher_args num_classes"),
        ("demo", {"dpeth": 3}, "Unknown field 'dpeth' of a model. Did you mean 'depth'?"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(name, changes, words, no_download):
    with pytest.raises(UserError, match=words) as caught:
        find_teacher(name, changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_reach", [True, False])
def test_offline_is_one_sentence(in_reach, monkeypatch):
    """Also where the hub answers, but the download fails."""

    def fails(name, pretrained, **changes):
        assert in_reach
        raise FileNotFoundError("Cannot find the requested files in the disk cache.")

    monkeypatch.setattr("timm.create_model", fails)
    monkeypatch.setattr("cvt.weights.source._reachable", lambda: in_reach)
    with pytest.raises(UserError, match=r"Cannot get timm's weights of 'test_resnet.*go online"):
        find_teacher("timm/test_resnet.r160_in1k", {})


def test_a_teacher_of_other_classes_is_refused(weights):
    source = find_teacher(weights(), {})
    with pytest.raises(UserError, match="with 3 classes for data with 2, expected as many"):
        check_teacher(source, HALF, ("a", "b"))
    with pytest.raises(UserError, match=r"another order \(class 0 is 'a' to it and 'b' in"):
        check_teacher(source, HALF, ("b", "a", "c"))


def test_classes_of_other_names_are_only_told(weights):
    source = find_teacher(weights(), {})
    assert check_teacher(source, HALF, NAMES) == []
    (note,) = check_teacher(source, HALF, ("a", "x", "c"))
    assert "calls its classes otherwise (class 1 is 'b' to it and 'x' in the data)" in note
    nameless = find_teacher(weights("nameless.safetensors", class_names=None), {})
    assert check_teacher(nameless, HALF, ("x", "y", "z")) == []


def refusal(source, *size):
    """What is said of pictures of this size."""
    student = Preprocessing(input_size=size, mean=(0.5,) * size[0], std=(0.5,) * size[0])
    with pytest.raises(UserError) as caught:
        check_teacher(source, student, tuple(map(str, range(source.network.num_classes))))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_that_its_network_does_not_take_are_refused(weights, no_download):
    strict = find_teacher("timm/vit_tiny_patch16_224", {})
    assert "does not take the student's images of 3x32x32 (" in refusal(strict, 3, 32, 32)
    patches = weights(class_names=None, embed_kernel=[5, 3, 3], embed_padding=0)
    source = find_teacher(patches, {})
    assert "3x16x16 (An image of 16x16 pixels is too small" in refusal(source, 3, 16, 16)
    said = refusal(source, 1, 64, 64)
    assert "expected (batch, 3, height, width)); give another --image-size, change the" in said


def test_what_does_not_answer_with_logits_is_refused():
    class Twice(Pixels):
        def forward(self, images):
            return (images[:, :, 0, 0],) * 2

    source = FoundTeacher(name="twice", network=Twice(), preprocessing=HALF)
    with pytest.raises(UserError, match="does not answer an image with 3 logits"):
        check_teacher(source, HALF, NAMES)
