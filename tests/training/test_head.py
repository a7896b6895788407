"""Heads that are fitted to features: a fast run's, and the one that training starts from."""

import signal
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

import cvt
from cvt.data import ArraySet, load_data
from cvt.errors import UserError
from cvt.evaluation import Batching, ModelUnderTest, evaluate, extract, fit_heads
from cvt.evaluation.answers import preprocessing_of
from cvt.prediction import predict
from cvt.runtime import ALONE
from cvt.training import head as heads
from cvt.training.loop import train
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint
from cvt.weights.record import Preprocessing, Record
from processes import in_processes
from randomise import randomise
from shades import write_shades
from stored import stored_facts, stored_tensors
from trained import Event, differences, session, sessions

BLOCKS = {"cvt.training.head._BLOCK": 6}  # two of the twelve training images


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """`weights_of(name, **changes)`: the weights of a tiny network that was never trained."""

    def make(name: str = "cvt_nano_32", **changes):
        if name == "cvt_nano_32":
            changes = {"depth": 1, "embed_dim": [8, 8, 16], "num_heads": 1, **changes}
        model = randomise(cvt.create_model(name, **changes))
        size = (model.in_chans, 16, 16)
        half = (0.5,) * model.in_chans
        images = Preprocessing(input_size=size, mean=half, std=half, crop_pct=1.0)
        path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
        record = Record(model=name, spec=model.spec, preprocessing=images, licence="MIT")
        save_checkpoint(path, model.state_dict(), record)
        return path

    return make


@pytest.fixture(scope="module")
def weights(weights_of):
    return weights_of()


@pytest.fixture(scope="module")
def fast_of(tiny_folder, weights):
    """`fast_of(out, **changes)`: the settings of a fast run on the tiny images."""

    def make(out, **changes):
        usual = {"batch_size": 4, "num_workers": 0, "device": "cpu", "weights": str(weights)}
        return {"data": str(tiny_folder), "out": str(out), "fast": True, **usual, **changes}

    return make


@pytest.fixture(scope="module")
def whole(fast_of, tmp_path_factory):
    """A fast run that nothing happens to."""
    return session(fast_of(tmp_path_factory.mktemp("whole")), patches=BLOCKS).result


def test_a_fast_run_is_a_run_like_any_other(whole, weights, tiny_folder):
    names = {each.name for each in whole.run.iterdir()}
    assert {"README.md", "config.yaml", "metrics.csv", "result.json", "last.safetensors"} < names
    assert not {"features", "batch.png"} & names
    assert "Only the classifier was fitted, at once" in (whole.run / "README.md").read_text()
    tensors, record = load_checkpoint(whole.run / "best.safetensors")
    assert record.class_names == ("bright", "dark")
    assert record.licence == "MIT"
    assert record.metrics["top1"] == whole.best_top1 == 100
    assert record.trained_on.digests["training"][0] == 12
    before = load_checkpoint(weights)[0]
    kept = {name for name in tensors if not name.startswith("head.")}
    assert kept == before.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(tensors[name], before[name]) for name in kept)
    measured = evaluate(whole.run, tiny_folder, split="test", device="cpu")
    assert (measured.top1, measured.loss) == (whole.test_top1, whole.test_loss)
    image = tiny_folder / "test" / "dark" / "0.png"
    assert predict(whole.run, image, device="cpu")[0].labels[0].name == "dark"
    (row,) = (whole.run / "metrics.csv").read_text().splitlines()[1:]
    epoch, train_loss, val_loss, top1, lr = map(float, row.split(",")[:5])
    assert (epoch, top1, lr) == (1, 100, 0)
    assert 0 < train_loss < 0.7
    assert val_loss == pytest.approx(whole.best_loss, rel=1e-5)
    config = stored_facts(whole.run)["config"]
    assert (config["freeze"], config["head"], config["updates"]) == ("backbone", "probed", 1)


def test_the_networks_answers_are_those_of_the_best_fit(whole, weights, tiny_folder):
    """Found by other means: the network as it trains, without blocks, on its own images."""
    data = load_data(str(tiny_folder))
    tested = ModelUnderTest(cvt.load(weights), Batching(device="cpu"), ALONE)
    features = [extract(tested, each) for each in (data.train, data.val)]
    mirrored = [replace(each, vectors=_mirrored(tested, data.train)) for each in features[:1]]
    both = replace(
        features[0],
        vectors=np.concatenate([features[0].vectors, mirrored[0].vectors]),
        labels=np.tile(features[0].labels, 2),
    )
    best = fit_heads(both, features[1], 2)[0]
    expected = best.logits(extract(tested, data.test).vectors)
    answers = ModelUnderTest(cvt.load(whole.run), Batching(device="cpu"), ALONE).answers(data.test)
    # Solvers stop where the gradient is below 1e-4.
    assert answers.logits.numpy() == pytest.approx(expected, abs=0.02)
    assert np.abs(expected).max() > 0.2


def _mirrored(tested, images):
    pixels = np.stack([np.asarray(images.image(n))[:, ::-1] for n in range(len(images))])
    return extract(tested, ArraySet(pixels, images.labels, images.classes, "mirrored")).vectors


@pytest.mark.parametrize(
    "event",
    [
        Event("cvt.training.head.validate", 2),
        Event("cvt.training.head.fit_heads", 1),
        Event("cvt.training.loop.keep_epoch", 1),
    ],
    ids=["features", "fit", "epoch"],
)
def test_interrupted_and_resumed_is_the_same_run(event, fast_of, whole, tmp_path):
    config = fast_of(tmp_path / "cut")
    assert session(config, event, patches=BLOCKS).error == "Interrupted"
    resumed = session({"resume": config["out"]}, patches=BLOCKS).result
    assert differences(whole.run, resumed.run) == []
    assert (resumed.best_top1, resumed.test_loss) == (whole.best_top1, whole.test_loss)


def test_killed_it_goes_on_with_the_features_that_it_has(fast_of, whole, tmp_path):
    """The second of two blocks was not kept yet; the third is that of the validation images."""
    config = fast_of(tmp_path / "cut")
    killed = Event("cvt.training.head._keep", 2, signal.SIGKILL)
    in_processes(1, patched_session, config, killed, dies=(0,))
    assert [each.name for each in (tmp_path / "cut" / "features").iterdir()] == [
        "train-000000.safetensors"
    ]
    kept = heads._keep
    again = []
    with patch(
        "cvt.training.head._keep", lambda path, *rest: again.append(path) or kept(path, *rest)
    ):
        resumed = session({"resume": config["out"]}, patches=BLOCKS).result
    assert [each.name[:-12] for each in again] == ["train-000001", "val-000000"]
    assert differences(whole.run, resumed.run) == []
    assert not (tmp_path / "cut" / "features").exists()


def patched_session(config, event):
    return session(config, event, patches=BLOCKS)


def test_features_of_other_weights_or_images_are_not_taken(fast_of, weights_of, tmp_path):
    """A run that was killed before its first checkpoint begins again, with what is there then."""
    config = fast_of(tmp_path / "cut")
    killed = Event("cvt.training.head.fit_heads", 1, RuntimeError("the end"))
    with pytest.raises(RuntimeError, match="the end"):
        session(config, killed, patches=BLOCKS)
    other = randomise(cvt.load(config["weights"]), seed=1)
    own = tmp_path / "other.safetensors"
    save_checkpoint(own, other.state_dict(), other.record)
    yaml = tmp_path / "cut" / "config.yaml"
    yaml.write_text(yaml.read_text().replace(config["weights"], str(own)))
    resumed = session({"resume": config["out"]}, patches=BLOCKS).result
    fresh = session(fast_of(tmp_path / "fresh", weights=str(own)), patches=BLOCKS).result
    assert differences(resumed.run, fresh.run) == []


def test_two_processes_are_one_that_accumulates(fast_of, tmp_path):
    """Also where each of them holds a share of the model."""
    one = session(fast_of(tmp_path / "one", accum_steps=2)).result
    ways = [fast_of(tmp_path / each, parallel=each) for each in ("ddp", "fsdp")]
    ended = in_processes(2, sessions, ways)
    assert differences(one.run, tmp_path / "ddp") == []
    assert differences(one.run, tmp_path / "fsdp") == []
    assert {each.result.test_loss for rank in ended for each in rank} == {one.test_loss}


@pytest.mark.slow
def test_a_fast_run_is_exported_like_any_other(whole, tmp_path):
    cvt.export(whole.run, tmp_path / "fast.pt2")
    program = torch.export.load(tmp_path / "fast.pt2")
    images = torch.zeros(2, 3, 16, 16)
    expected = cvt.load(whole.run)(images).detach()
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)


# --- The head that training starts from.


@pytest.fixture(scope="module")
def probed_of(tiny_run, weights):
    """`probed_of(out, **changes)`: training that starts from the weights with a fitted head."""

    def make(out, **changes):
        usual = {"weights": str(weights), "head": "probed", "model": None, "model_args": {}}
        settings = tiny_run(out, **{**usual, "epochs": 1, **changes})
        return {name: value for name, value in settings.items() if value is not None}

    return make


def test_training_starts_from_the_head_of_a_fast_run(probed_of, whole, tmp_path):
    """So does the average of its weights."""
    config = probed_of(tmp_path / "run", ema_decay=0.9)
    with pytest.raises(RuntimeError, match="the end"):
        session(config, Event("cvt.training.loop.train_step", 1, RuntimeError("the end")))
    fitted = load_checkpoint(whole.run / "best.safetensors")[0]
    stored = stored_tensors(tmp_path / "run")
    for kind in ("model", "ema"):
        for name in ("head.weight", "head.bias"):
            assert torch.equal(stored[f"{kind}.{name}"], fitted[name])


def test_resumed_training_keeps_its_first_head(probed_of, tmp_path):
    """Stopped at its first update, it goes on without looking at an image's features again."""
    config = probed_of(tmp_path / "whole", ema_decay=0.9)
    assert session(config).result
    cut = {**config, "out": str(tmp_path / "cut")}
    assert session(cut, Event("cvt.training.loop.train_step", 1)).error == "Interrupted"
    never = Event("cvt.training.head.fit_heads", 1, AssertionError("fitted again"))
    assert session({"resume": cut["out"]}, never).result
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    told = stored_facts(tmp_path / "cut")["progress"]["head"]
    assert told.startswith("Head fitted to 16 features of 12 training images, plain and mirrored")


def test_killed_training_begins_again_with_the_same_head(probed_of, tmp_path):
    config = probed_of(tmp_path / "whole")
    assert session(config).result
    cut = {**config, "out": str(tmp_path / "cut")}
    killed = Event("cvt.training.loop.keep_state", 1, signal.SIGKILL)
    in_processes(1, session, cut, killed, dies=(0,))
    assert session({"resume": cut["out"]}).result
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deit_nano_32", {"img_size": 16, "depth": 1, "num_classes": 5}),
        ("cvt_nano_32", {"in_chans": 1}),
        ("timm/mobilenetv3_small_050", {}),
    ],
    ids=["two heads", "grey", "timm"],
)
def test_other_networks_get_all_their_heads(name, changes, fast_of, weights_of, tmp_path):
    given = {"weights": str(weights_of(name, **changes)), "image_size": 16}
    result = session(fast_of(tmp_path / "run", **given)).result
    tensors, record = load_checkpoint(result.run / "best.safetensors")
    assert record.preprocessing.input_size[0] == changes.get("in_chans", 3)
    fitted = [tensors[f"{each}.weight"] for each in record.spec.classifiers]
    assert all(torch.equal(each, fitted[0]) for each in fitted)
    assert len(fitted) == (2 if name == "deit_nano_32" else 1)
    assert result.best_top1 == 100


def test_a_large_set_is_sampled_class_by_class():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    images = ArraySet(np.zeros((1000, 2, 2), np.uint8), labels, "abc", "many")
    some = heads._spread(images, 100)
    assert np.bincount(some.labels).tolist() == pytest.approx([90, 9, 1], abs=1)
    assert (np.diff(some.indices) > 0).all()
    assert heads._spread(images, 1000) is images


# --- What is in the way.


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"fast": True, "epochs": 3}, "Got fast with epochs 3, but it fits the classifier alone"),
        ({"fast": True, "minutes": 3}, "Got fast with minutes 3, but it fits the classifier alone"),
        ({"fast": True, "weights": "none"}, "Got fast without weights, whose features it needs"),
        ({"fast": True, "teacher": "demo"}, "Got fast with teacher 'demo'"),
        ({"fast": True, "freeze": "bn"}, "leave freeze out, or give head probed instead of fast"),
        (
            {"head": "probed", "model": "cvt_nano_32"},
            "Got head probed without weights to probe",
        ),
    ],
)
def test_contradictions_are_one_sentence(asked, words, tiny_folder, tmp_path):
    with pytest.raises(UserError, match=words):
        train(str(tiny_folder), out=str(tmp_path / "run"), progress=False, **asked)
    assert not (tmp_path / "run").exists()


def test_two_images_a_class_are_enough(fast_of, tmp_path):
    data = write_shades(tmp_path / "few", {"": (2, 2)})
    result = session(fast_of(tmp_path / "run", data=str(data), batch_size=2)).result
    assert stored_facts(result.run)["progress"]["head"].startswith(
        "Head fitted to 16 features of 2 training images"
    )


def test_images_that_cannot_be_read_are_named_and_left_out(fast_of, tmp_path):
    data = write_shades(tmp_path / "torn", {"train": (9, 9), "val": (3, 3)})
    for number in range(3):
        (data / "train" / "dark" / f"{number}.png").write_bytes(b"torn")
    (data / "val" / "dark" / "0.png").write_bytes(b"")
    config = fast_of(tmp_path / "run", data=str(data))
    cut = session(config, Event("cvt.training.head.fit_heads", 1), patches=BLOCKS)
    assert cut.error == "Interrupted"
    result = session({"resume": config["out"]}, patches=BLOCKS).result
    assert len(result.bad) == 4
    assert "15 training images" in stored_facts(result.run)["progress"]["head"]


def test_features_that_are_no_numbers_are_refused(fast_of, weights_of, tmp_path):
    path = weights_of()
    tensors, record = load_checkpoint(path)
    tensors["norm.weight"] = torch.full_like(tensors["norm.weight"], 3e38)
    save_checkpoint(path, tensors, record)
    ended = session(fast_of(tmp_path / "run", weights=str(path)))
    assert "no finite numbers" in ended.text
    assert preprocessing_of(cvt.load(path)).size == (16, 16)
