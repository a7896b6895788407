"""A loss that is not a number stops the run, says where and on what, and costs nothing saved."""

import json
import math
import os
from unittest.mock import patch

import pytest
import torch

from cvt.data import epoch_order, load_data
from cvt.errors import UserError
from cvt.training import loop
from processes import in_processes
from trained import differences, session

UPDATE = 5  # the second one of the second epoch
BATCH = 4


def poisoned(config: dict, rank: int = 0):
    """A session in which a picture of that update, in one process, is not a number."""
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

    with patch("cvt.training.loop._write_nonfinite", full):
        ended = poisoned(tiny_run(tmp_path / "run"))
    assert ended.error == "NonFinite"
    assert ": the loss is nan, the gradient norm nan; its 4 images (" in ended.text
    assert "could not be listed (The disk is full: nonfinite.json was not written; " in ended.text
