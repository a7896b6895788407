"""The four rules that exact resume stands on: kept, it is exact; each of them broken, it is not.

A run is stopped in the middle of an epoch and resumed, and compared with one that was not.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cvt.data.loader import BatchLoader
from cvt.runtime import join_world
from cvt.training.checkpoints import RunFacts, read_run_facts
from processes import in_processes
from trained import Event, differences, session

STEP = "cvt.training.loop.train_step"
PER_EPOCH = 2  # updates


def whole_and_resumed(config: dict, make_patches=dict) -> None:
    """Trains both; every session gets patches of its own, as it would be a process of its own.

    It is stopped in its last epoch after the first update.
    """
    stop = Event(STEP, PER_EPOCH * (config["epochs"] - 1) + 1)
    cut = {**config, "out": f"{config['out']} cut"}
    with join_world("cpu"):
        assert session(config, patches=make_patches()).result
        assert session(cut, stop, patches=make_patches()).error == "Interrupted"
        assert session({"resume": cut["out"]}, patches=make_patches()).result


def what_differs(config: dict) -> list[str]:
    """Names what stopping and resuming changed."""
    return differences(Path(config["out"]), Path(f"{config['out']} cut"))


@pytest.fixture
def config(tiny_run, tmp_path):
    """An epoch of two updates, with everything that draws numbers; SGD stores the least."""
    optim = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}
    return tiny_run(tmp_path / "run", epochs=1, batch_size=6, optim=optim)


def drawing_loader():
    """The loader draws from the global generators when iteration begins, as torch's own does."""

    class Drawing(BatchLoader):
        def __iter__(self):
            torch.rand(3)
            np.random.rand(3)
            return super().__iter__()

    return {"cvt.data.loader.BatchLoader": Drawing}


def test_with_all_rules_kept_nothing_differs(config):
    """Rule 2 included: what iteration draws happens before the generators are put in place."""
    config = {**config, "epochs": 2}
    whole_and_resumed(config, drawing_loader)
    assert what_differs(config) == []
    undisturbed = {**config, "out": f"{config['out']} undisturbed"}
    assert session(undisturbed).result
    assert differences(Path(config["out"]), Path(undisturbed["out"])) == []


def only_torch_seeded():
    """Rule 1 broken: timm's augmentation draws from Python's and numpy's generators as well."""

    def seed(*key: int) -> None:
        torch.default_generator.manual_seed(hash(key))

    return {"cvt.data.loader.seed_all": seed}


def generators_flow_on():
    """Rule 2 broken: nobody puts the generators to where they were at this position."""
    return {"cvt.training.loop.seed_position": lambda *position: None}


def order_from_a_generator():
    """Rule 4 broken: an epoch's order is whatever the sampler's generator comes to."""
    generator = np.random.default_rng(0)

    def order(count: int, **rest: object) -> list[int]:
        return generator.permutation(count).tolist()

    return {"cvt.data.loader.epoch_order": order}


def epochs_begin_anew():
    """Rule 4 broken: the batch within the epoch is forgotten."""

    def without_batch(checkpoint: Path) -> RunFacts:
        facts = read_run_facts(checkpoint)
        return replace(facts, progress=replace(facts.progress, batch=0))

    return {"cvt.training.setup.read_run_facts": without_batch}


@pytest.mark.parametrize(
    ("broken", "epochs"),
    [
        (only_torch_seeded, 1),
        (generators_flow_on, 1),
        (order_from_a_generator, 2),
        (epochs_begin_anew, 1),
    ],
)
def test_with_a_rule_broken_the_resumed_run_is_another_one(broken, epochs, config):
    config = {**config, "epochs": epochs}
    whole_and_resumed(config, broken)
    differing = what_differs(config)
    assert "model.head.weight" in differing
    assert "metrics." in differing


def each_its_own_norms():
    """Rule 3 broken: every process has running statistics of its own, and one's are stored."""
    return {"cvt.training.network.ChunkNorms": lambda model: None}


def test_with_statistics_of_each_processes_own_the_resumed_run_is_another_one(config):
    """Rule 3 kept is what `test_distributed.py` stops and resumes."""
    in_processes(2, whole_and_resumed, config, each_its_own_norms)
    differing = what_differs(config)
    assert any(name.startswith("last.") and "running" in name for name in differing)
    assert "metrics." in differing
    assert not any("weight" in name for name in differing)  # training does not look at them
