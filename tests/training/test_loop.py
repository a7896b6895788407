"""The loop: what it leaves, what it refuses, and what a loss that is no number does to it."""

import csv
import json
import math
import os
import random
import shutil
from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.data import epoch_order, load_data
from cvt.errors import Remark, UserError
from cvt.runtime import ALONE
from cvt.training import loop
from cvt.training.config import load_config
from cvt.training.defaults import said
from cvt.training.loop import train
from cvt.training.report import report
from cvt.training.setup import prepare
from cvt.training.step import NonFinite
from cvt.weights.checkpoint import load_checkpoint
from cvt.zoo.create import load
from processes import in_processes
from trained import Event, differences, session


def test_a_run_leaves_a_complete_folder(sheets, tiny_config, tmp_path, capsys):
    result = train(**tiny_config())
    run = tmp_path / "run"
    with open(run / "mistakes.csv", newline="") as file:
        mistakes = list(csv.DictReader(file))
    wrong = round(4 * (1 - result.best_top1 / 100)), round(4 * (1 - result.test_top1 / 100))
    assert [each["split"] for each in mistakes] == ["validation"] * wrong[0] + ["test"] * wrong[1]
    assert (run / "mistakes.png").exists() == any(wrong)
    assert {each.name for each in run.iterdir()} - {"mistakes.png"} == {
        ".lock",
        "README.md",
        "batch.png",
        "best.safetensors",
        "config.yaml",
        "confusion.png",
        "curves.png",
        "checkpoints",
        "last.safetensors",
        "metrics.csv",
        "mistakes.csv",
        "result.json",
        "tensorboard",
    }
    config = load_config(run / "config.yaml")
    assert config.optim.lr == 1e-3
    assert config.optim.weight_decay is not None
    with open(run / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line.pop("ended") for line in lines] == ["", "epochs"]
    rows = [{name: float(value) for name, value in line.items()} for line in lines]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    best = rows[result.best_epoch - 1]
    assert best["val_top1"] == max(row["val_top1"] for row in rows)
    assert best["val_loss"] == pytest.approx(result.best_loss, rel=1e-5)
    with Image.open(run / "curves.png") as image:
        assert image.size[0] > 800
        assert np.asarray(image.convert("L")).std() > 5
    record = load_checkpoint(run / "best.safetensors")[1]
    assert record.metrics == {
        "epoch": result.best_epoch,
        "top1": result.best_top1,
        "loss": result.best_loss,
    }
    assert record.preprocessing.size == (16, 16)
    assert load(run).num_classes == 2
    shown = capsys.readouterr().out
    for text in (
        "12 training and 4 validation images, 4 for the final test",
        "lr 0.001",
        "epoch 2/2",
    ):
        assert text in shown
    assert f"cvt eval {run}" in shown
    assert f"Test top-1 {result.test_top1:.2f} %" in report(result)


def test_quiet_means_quiet(tiny_config, capsys):
    train(**tiny_config(epochs=1), progress=False)
    assert capsys.readouterr().out == ""


def test_it_learns(tiny_config):
    easy = tiny_config(
        epochs=8,
        drop_path_rate=None,
        optim={"lr": 3e-3, "warmup_epochs": 1.0},
        augment={"crop": "none", "auto_augment": "off"},
        mix={"mixup": 0.0, "cutmix": 0.0},
    )
    result = train(**easy, progress=False)
    assert (result.best_top1, result.test_top1) == (100, 100)


def test_broken_images_are_named_once_and_counted(tiny_config, tiny_folder, tmp_path, capsys):
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    (data / "train" / "dark" / "0.png").write_bytes(b"")
    (data / "val" / "dark" / "0.png").write_text("not an image")
    result = train(**tiny_config(data=str(data)))
    assert len(result.bad) == 2
    shown = capsys.readouterr().out
    assert shown.count("train/dark/0.png") == 1
    assert shown.count("val/dark/0.png") == 1
    assert "2 images could not be read and were skipped" in shown


def test_nan_stops_and_keeps_the_last_good_state(tiny_config, tmp_path, monkeypatch):
    original, calls = loop.train_step, []

    def poisoned(network, chunks, *args, **kwargs):
        calls.append(1)
        factor = torch.nan if len(calls) == 5 else 1.0
        chunks = [(images * factor, labels) for images, labels in chunks]
        return original(network, chunks, *args, **kwargs)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(NonFinite, match=r"update 5 \(epoch 2, learning rate 0\.00\d+\): the loss"):
        train(**tiny_config(), progress=False)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors")[1].metrics["epoch"] == 1
    assert train(resume=str(tmp_path / "run"), progress=False).test_top1 is not None


def test_runs_never_overwrite(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        result = train(**tiny_config(epochs=1) | {"out": None}, progress=False)
        assert str(result.run).startswith("runs/tiny")
        assert result.run.name.endswith(f"-cvt_nano_32-{number}")
    with pytest.raises(UserError, match=r"is not empty, and a run never overwrites"):
        train(**tiny_config() | {"out": result.run}, progress=False)


def test_more_batch_than_images_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="Got batch_size 13 for 12 training images"):
        train(**tiny_config(batch_size=13), progress=False)
    assert not (tmp_path / "run").exists()


def test_starts_from_weights(tiny_config, tiny_run, tmp_path):
    first = train(**tiny_config(epochs=1), progress=False)
    config = tiny_run(
        tmp_path / "second",
        model=None,
        model_args={},
        weights=str(first.run),
        epochs=1,
        optim={"lr": 1e-9, "weight_decay": 0.0},
    )
    second = train(**config, progress=False)
    assert load_checkpoint(second.run / "last.safetensors")[1].model == "cvt_nano_32"
    before, after = load(first.run / "best.safetensors"), load(second.run / "last.safetensors")
    for (name, one), (_, other) in zip(
        before.named_parameters(), after.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_default_run_reaches_98_percent(seed, tmp_path):
    result = train(seed=seed, out=str(tmp_path / "run"), progress=False)
    assert result.test_top1 >= 98


UPDATE = 5  # the second one of the second epoch
BATCH = 4


def poisoned(config: dict, rank: int = 0):
    """A session in which an image of that update, in one process, is not a number."""
    original, calls = loop.train_step, []

    def step(network, chunks, *rest):
        calls.append(chunks)
        chunks = list(chunks)
        if len(calls) == UPDATE and int(os.environ.get("RANK", 0)) == rank:
            chunks[0][0][0, 0, 0, 0] = torch.nan
        return original(network, chunks, *rest)

    with patch("cvt.training.loop.train_step", step):
        return session(config)


@pytest.mark.parametrize("processes", [1, 2])
def test_where_and_on_what_it_stopped_is_said_and_nothing_is_lost(processes, tiny_run, tmp_path):
    optim = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}  # which stores the least
    config = tiny_run(tmp_path / "run", optim=optim, accum_steps=2 // processes)
    if processes == 1:
        ended, others = poisoned(config), []
    else:
        ended, *others = in_processes(2, poisoned, config, 1)
    assert ended.error == "NonFinite"
    assert [(each.text, each.is_told_elsewhere) for each in others] == [
        (ended.text, True) for _ in others
    ]
    names = batch_names(config)
    report = tmp_path / "run" / "nonfinite.json"
    assert ended.text.startswith(f"Training stopped at update {UPDATE} (epoch 2, learning rate ")
    assert (
        f"): the loss is nan, the gradient norm nan; its {BATCH} images ({names[0]}, ...) are "
        f"named in {report}, and the last good checkpoint is kept in {tmp_path / 'run'}; "
    ) in ended.text
    facts = json.loads(report.read_text())
    assert facts["images"] == names
    assert (facts["update"], facts["epoch"]) == (UPDATE, 2)
    assert math.isnan(float(facts["loss"]))
    assert math.isnan(float(facts["grad_norm"]))
    assert f"learning rate {facts['lr']:.3g})" in ended.text
    if processes == 1:
        assert session({"resume": str(tmp_path / "run")}).result
        assert session({**config, "out": str(tmp_path / "whole")}).result
        assert differences(tmp_path / "whole", tmp_path / "run") == []


def batch_names(config: dict) -> list[str]:
    images = load_data(config["data"]).train
    order = epoch_order(len(images), shuffle=True, seed=0, epoch=1)
    return [images.name(number) for number in order[BATCH : 2 * BATCH]]


def test_a_disk_too_full_for_the_list_does_not_hide_it(tiny_run, tmp_path):
    def full(*_):
        raise UserError("The disk is full: nonfinite.json was not written; free some space first.")

    with patch("cvt.training.loop.atomic_write", full):
        ended = poisoned(tiny_run(tmp_path / "run"))
    assert ended.error == "NonFinite"
    assert ": the loss is nan, the gradient norm nan; its 4 images (" in ended.text
    assert "could not be listed (The disk is full: nonfinite.json was not written; " in ended.text


# --- The first batch, as an image.


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0, "smoothing": 0.1}, {}])
def test_the_first_images_are_those_that_the_network_gets(tiny_config, mix):
    run = prepare(said(tiny_config(mix=mix), "the test"), ALONE)
    before = random.getstate(), torch.get_rng_state()
    images, targets = run.first_images(1)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    seen = []
    run.network.forward.register_forward_pre_hook(lambda network, args: seen.append(args[0]))
    (batch,) = islice(run.train_loader(), 1)
    loop.make_update(run, [batch])
    assert torch.equal(images, seen[0][:1])
    if mix:
        assert targets.sum() == pytest.approx(1.0)
    else:
        assert targets == batch.labels[:1]


def test_the_first_batch_is_drawn_once(sheets, tiny_config, tmp_path):
    session(tiny_config(), Event("cvt.training.loop.keep_epoch", 1))
    drawn = (tmp_path / "run" / "batch.png").stat().st_mtime_ns
    assert session({"resume": str(tmp_path / "run")}).result
    assert (tmp_path / "run" / "batch.png").stat().st_mtime_ns == drawn


def test_a_run_without_images_trains_on(tiny_config, monkeypatch):
    def fails(*args):
        raise UserError("No room.")

    monkeypatch.setattr(loop, "save_batch", fails)
    monkeypatch.setattr(loop, "list_mistakes", fails)
    monkeypatch.setattr("cvt.errors._remarked", set())
    with pytest.warns(Remark, match="There is no plot: No room"):
        assert train(**tiny_config(), progress=False).best_epoch
