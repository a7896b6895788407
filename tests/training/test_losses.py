import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import cvt
from cvt.errors import UserError
from cvt.training.config import DistillConfig, MixConfig
from cvt.training.losses import (
    DistillationLoss,
    FoundTeacher,
    Teacher,
    check_teacher,
    distillation_term,
    find_teacher,
    make_loss,
)
from cvt.training.step import StepOptions, train_step
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.published import imagenet_class_names
from cvt.weights.record import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Record
from randomise import randomise

B, K = 6, 4
LOSSES = ("ce", "bce")


def config(loss, smoothing=0.0, mixup=0.0) -> MixConfig:
    return MixConfig(mixup=mixup, cutmix=0.0, smoothing=smoothing, loss=loss)


@pytest.fixture
def logits():
    return torch.randn(B, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 3, 0])


@pytest.fixture
def soft():
    return torch.rand(B, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def written_out(loss, logits, targets) -> torch.Tensor:
    """Per image, (B,), from probabilities (B, K)."""
    if loss == "ce":
        return -(targets * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1)
    yes, no = torch.sigmoid(logits).log(), torch.sigmoid(-logits).log()
    return -(targets * yes + (1 - targets) * no).mean(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_class_numbers_are_smoothed(loss, smoothing, logits, labels):
    targets = (1 - smoothing) * nn.functional.one_hot(labels, K) + smoothing / K
    got = make_loss(config(loss, smoothing))(logits, labels)
    assert got.item() == pytest.approx(written_out(loss, logits, targets).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mixers_probabilities_are_taken_as_they_are(loss, logits, soft):
    got = make_loss(config(loss, smoothing=0.3, mixup=0.8))(logits, soft)
    assert got.item() == pytest.approx(written_out(loss, logits, soft).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_times_the_pictures_it_is_a_sum_over_them(loss, logits, labels, soft):
    for loss_fn, targets in (
        (make_loss(config(loss, 0.1)), labels),
        (make_loss(config(loss, 0.1, mixup=0.8)), soft),
    ):
        parts = [loss_fn(logits[i:j], targets[i:j]) * (j - i) for i, j in ((0, 1), (1, 4), (4, 6))]
        assert (loss_fn(logits, targets) * B).item() == pytest.approx(sum(parts).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_bf16_rounds_no_target(loss, logits, labels):
    rough = logits.bfloat16()
    targets = 0.9 * nn.functional.one_hot(labels, K) + 0.1 / K
    expected = written_out(loss, rough.double(), targets).mean().item()
    with torch.autocast("cpu", torch.bfloat16):
        got = make_loss(config(loss, 0.1))(rough, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_two_classes_and_one_picture(logits):
    targets = torch.tensor([1])
    got = make_loss(config("bce"))(logits[:1, :2], targets)
    expected = written_out("bce", logits[:1, :2], torch.tensor([[0.0, 1.0]])).item()
    assert got.item() == pytest.approx(expected, rel=1e-6)


# --- DeiT's loss: against its authors' figures, and against its formula written out.


GOLDEN = json.loads((Path(__file__).parent / "golden" / "deit_losses.json").read_text())
KINDS = ("hard", "soft")


def numbers(name: str) -> torch.Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss_of(kind, alpha=0.5, tau=1.0) -> DistillationLoss:
    return DistillationLoss(nn.CrossEntropyLoss(), DistillConfig(kind=kind, alpha=alpha, tau=tau))


def written_out_term(kind, led, taught, tau) -> float:
    """The term, number by number."""
    total = 0.0
    for ours, theirs in zip(led.tolist(), taught.tolist(), strict=True):
        if kind == "hard":
            right = theirs.index(max(theirs))
            total += math.log(sum(map(math.exp, ours))) - ours[right]
            continue
        p, q = ([math.exp(each / tau) for each in logits] for logits in (theirs, ours))
        for mine, yours in zip(p, q, strict=True):
            share = mine / sum(p)
            total += tau**2 / len(ours) * share * math.log(share / (yours / sum(q)))
    return total / len(led)


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['kind']}-{case['alpha']}-{case['targets']}"
)
def test_it_is_the_authors_loss_and_gradient(case):
    logits, dist_logits = (numbers(name).requires_grad_() for name in ("logits", "dist_logits"))
    targets = numbers(case["targets"])
    targets = targets.long() if case["targets"] == "labels" else targets
    loss_fn = loss_of(case["kind"], case["alpha"], case["tau"])
    loss = loss_fn((logits, dist_logits), targets, numbers("teacher"))
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    loss.backward()
    for each, norm in zip((logits, dist_logits), case["grad_norms"], strict=True):
        got = 0.0 if each.grad is None else each.grad.norm().item()
        assert got == pytest.approx(norm, rel=1e-12)


def test_the_authors_figures_cover_all_kinds():
    assert GOLDEN["commit"].startswith("7e160fe")
    assert {case["kind"] for case in GOLDEN["cases"]} == {"none", *KINDS}


@given(
    kind=st.sampled_from(KINDS),
    images=st.integers(1, 5),
    classes=st.integers(1, 7),
    tau=st.floats(0.5, 5.0),
    seed=st.integers(0, 1000),
)
def test_the_term_is_the_formula(kind, images, classes, tau, seed):
    led, taught = random(images, classes, seed=seed), random(images, classes, seed=seed + 1)
    got = distillation_term(led, taught, kind, tau).item()
    assert got == pytest.approx(written_out_term(kind, led, taught, tau), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_without_a_token_learns_from_both_with_its_only_logits(kind):
    logits, taught, labels = random(4, 5), random(4, 5, seed=1), torch.tensor([0, 1, 2, 2])
    loss_fn = loss_of(kind, alpha=0.3, tau=2.0)
    assert torch.equal(loss_fn(logits, labels, taught), loss_fn((logits, logits), labels, taught))


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_teach_the_first_logits_as_they_do_without_a_teacher(kind, loss):
    mix = MixConfig(mixup=0.8, cutmix=0.0, smoothing=0.3, loss=loss)
    distill = DistillConfig(kind=kind, alpha=0.25, tau=1.5)
    own, led, taught = (random(4, 5, seed=seed) for seed in range(3))
    targets = random(4, 5, seed=3).softmax(dim=1)
    expected = 0.75 * make_loss(mix)(own, targets).item()
    expected += 0.25 * written_out_term(kind, led, taught, 1.5)
    assert make_loss(mix, distill)((own, led), targets, taught).item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_distilled_mean_times_the_images_is_a_sum(kind):
    own, led, taught = (random(6, 4, seed=seed) for seed in range(3))
    labels, loss_fn = torch.tensor([0, 1, 2, 3, 3, 0]), loss_of(kind, tau=3.0)
    parts = [
        loss_fn((own[i:j], led[i:j]), labels[i:j], taught[i:j]) * (j - i)
        for i, j in ((0, 1), (1, 4), (4, 6))
    ]
    assert sum(parts).item() == pytest.approx(6 * loss_fn((own, led), labels, taught).item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_logits_only(kind, dtype):
    led, taught = random(4, 5).to(dtype), random(4, 5, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = distillation_term(led, taught, kind, 2.0)
    assert got.dtype == torch.float32
    expected = written_out_term(kind, led.double(), taught.double(), 2.0)
    assert got.item() == pytest.approx(expected, rel=1e-5)


class Pair(nn.Module):
    """Two classifiers, as a distilled network has them in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, images):
        flat = images.flatten(1)
        return self.head(flat), self.head_dist(flat)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_the_big_batch(kind):
    images, labels = random(8, 3, 2, 2), torch.arange(8) % 4
    knows = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        model = Pair().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        chunks = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
        options = StepOptions(batch_size=8, num_chunks=parts, teacher=lambda x: knows(x).detach())
        result = train_step(model, chunks, loss_of(kind), optimizer, options)
        found = [result.loss, result.grad_norm]
        weights.append(torch.cat([*(each.flatten() for each in model.parameters())]))
        weights[-1] = torch.cat([weights[-1], torch.tensor(found, dtype=torch.float64)])
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-10, atol=1e-12)


def test_the_teacher_sees_what_the_student_sees():
    """The mixed image, once for each chunk."""
    seen = {"student": [], "teacher": []}

    def teacher(images):
        seen["teacher"].append(images)
        return images.new_zeros(len(images), 4)

    model = Pair().double()
    model.register_forward_pre_hook(lambda module, args: seen["student"].append(args[0]))
    options = StepOptions(
        batch_size=8, num_chunks=2, teacher=teacher, mixer=lambda x, y: (x.flip(0) * 0.5, y)
    )
    images, labels = random(8, 3, 2, 2), torch.arange(8) % 4
    chunks = list(zip(images.chunk(2), labels.chunk(2), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, chunks, loss_of("hard"), optimizer, options)
    assert len(seen["teacher"]) == 2
    for ours, theirs, (given_images, _) in zip(
        seen["student"], seen["teacher"], chunks, strict=True
    ):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, given_images.flip(0) * 0.5)


def test_a_chunk_without_good_pictures_counts_for_nothing():
    """Yet all parameters get a gradient, for which other processes may wait."""
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    blank = torch.randn(1, 3, 2, 2), torch.tensor([1])
    good = torch.randn(4, 3, 2, 2), torch.arange(4)
    options = StepOptions(
        batch_size=8, num_chunks=2, teacher=lambda images: torch.zeros(len(images), 4)
    )
    alone = train_step(model, [blank, blank], loss_of("hard"), optimizer, options)
    assert alone.num_images == 0
    assert all(each.grad is not None for each in model.parameters())
    assert train_step(model, [good, blank], loss_of("hard"), optimizer, options).num_images == 4


# --- The network that a student learns from: where it is found, what it sees, what is refused.


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
        network = original(name, **changes)
        if not pretrained:
            return network
        asked.append((name, changes["pretrained_cfg"]))
        return randomise(network)

    monkeypatch.setattr("timm.create_model", untrained)
    monkeypatch.setattr("cvt.weights.source.is_out_of_reach", lambda repo_id: False)
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
    assert find_teacher("demo", {}).network.num_classes == 200
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
    assert no_download == [("test_resnet", "r160_in1k")]
    assert source.preprocessing.mean == (0.5, 0.5, 0.5)
    assert source.network.num_classes == 1000
    assert not source.network.training
    student = Preprocessing(input_size=(3, 64, 64))
    assert check_teacher(source, student, imagenet_class_names()) == []
    (note,) = check_teacher(source, student, tuple(map(str, range(1000))))
    assert "class 0 is 'tench, Tinca tinca' to it and '0' in the data" in note
    grey = find_teacher("timm/test_resnet.r160_in1k", {"in_chans": 1})
    assert grey.preprocessing.mean == (0.5,)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("timm/test_resnte", {}, r"Unknown model 'timm/test_resnte'\. Did you mean 'timm/test_r"),
        ("timm/test_resnet.nothing", {}, "timm has no weights 'nothing' of 'test_resnet'"),
        ("timm/cvt_nano_32", {}, "a network of this library that timm only lists"),
        ("timm/test_vit", {"hue": 3}, "Unknown argument 'hue' of timm's test_vit"),
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

    original = timm.create_model

    def fails(name, pretrained=False, **changes):
        if not pretrained:
            return original(name, **changes)
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
    """What is said of images of this size."""
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
