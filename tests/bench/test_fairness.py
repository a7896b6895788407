"""What is alike for all contenders when it comes to the pictures, and how speeds are measured."""

import torch

from cvt.bench.contest import recipe as pace
from cvt.bench.contest.recipe import seconds_per_update, share
from cvt.bench.names import read_contender
from cvt.bench.speed.measure import take_turns
from cvt.runtime import ALONE
from cvt.training.setup import prepare

SMALL = {"data": "digits", "device": "cpu", "image_size": 16, "batch_size": 16, "num_workers": 0}
TINY = read_contender("cvt_nano_32+depth=1")


def batches(shared, name, seed, folder):
    config = shared.run_config(read_contender(name), seed, folder / f"{name}-{seed}", 100)
    job = prepare(config, ALONE)
    job.progress.epoch = 1
    return [batch for batch, _ in zip(job.train_loader(), range(3), strict=False)]


def test_a_seed_is_the_same_pictures_in_the_same_order_varied_alike(tmp_path):
    names = ("cvt_nano_32+depth=1", "vit_nano_32+depth=1")
    shared = share(SMALL, [read_contender(name) for name in names])
    one, other = (batches(shared, name, 0, tmp_path) for name in names)
    assert len(one) == 3
    for mine, yours in zip(one, other, strict=True):
        assert torch.equal(mine.images, yours.images)
        assert torch.equal(mine.labels, yours.labels)
    another = batches(shared, names[0], 1, tmp_path)
    assert not torch.equal(one[0].labels, another[0].labels)


def test_who_comes_first_decides_nothing():
    both = [read_contender(name) for name in ("cvt_mini_32", "vit_nano_32+depth=1")]
    assert share(SMALL, both).to_dict() == share(SMALL, both[::-1]).to_dict()


def test_the_model_of_a_recipe_does_not_matter():
    recipe = {
        **SMALL,
        "model": "cvt_mini_32",
        "model_args": {"kv_stride": 1},
        "epochs": 7,
        "seed": 3,
    }
    assert share(recipe, [TINY]).to_dict() == share(SMALL, [TINY]).to_dict()


def test_the_pace_is_the_time_of_the_counted_updates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clock, made = [0.0], []

    def update(job, chunks):
        made.append(len(chunks))
        assert sum(len(chunk.labels) for chunk in chunks) == 16
        clock[0] += 100.0 if len(made) <= pace.WARM_UP else 2.0

    monkeypatch.setattr(pace, "make_update", update)
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    config = share(SMALL, [TINY]).run_config(TINY, 0, tmp_path / "unused", None)
    assert seconds_per_update(config) == 2.0
    assert len(made) == pace.WARM_UP + pace.LONGEST_S / 2.0
    assert list(tmp_path.iterdir()) == []
    made.clear()
    seconds_per_update({**config, "accum_steps": 2})
    assert set(made) == {2}


def test_inference_is_timed_in_turns_and_what_has_no_room_left_out():
    turns = []

    def clock(call, device, seconds):
        (images,) = call.args
        turns.append(call().shape[1])
        if turns[-1] == 3:
            raise torch.OutOfMemoryError
        assert images.shape == (8, 3, 16, 16)
        return ({2: [0.8, 0.2, 0.4], 4: [8.0]}[turns[-1]] * 7)[turns.count(turns[-1]) - 1], 1

    models = {
        label: {"model": "cvt_nano_32", "model_args": {"num_classes": classes, "depth": 1}}
        for label, classes in (("a", 2), ("big", 3), ("b", 4))
    }
    asked = {"models": models, "image_size": 16, "batch_size": 8, "device": "cpu",
             "precision": "float32"}  # fmt: skip
    assert take_turns(asked, clock) == {"a": 20.0, "b": 1.0}
    assert turns == [2, 3, 4] + [2, 4] * 6
