"""Mixed precision, compiling, recomputing and layouts: the same training, or near it, resumed."""

from functools import partial
from unittest.mock import patch

import pytest
import torch

from cvt.weights.checkpoint import load_checkpoint
from stored import stored_facts
from trained import Event, differences, farthest, session

STOP = Event("cvt.training.loop.train_step", 2)


@pytest.fixture(scope="module")
def run_of(tiny_run):
    """`run_of(out, **changes)`: three updates by SGD, whose steps are as exact as gradients are."""
    optim = {"opt": "sgd", "lr": 0.1, "warmup_epochs": 0.0}
    return partial(tiny_run, epochs=1, optim=optim)


@pytest.fixture(scope="module")
def plain(run_of, tmp_path_factory):
    """The run without any of them."""
    return session(run_of(tmp_path_factory.mktemp("plain"))).result.run


# In float32, sums in another order are off by a few times 6e-8 of gradients that are near 1, and
# three updates move weights by at most 0.1 * (1 + 1.9 + 2.7) of that.
ROUNDING = 1e-5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("compile", marks=pytest.mark.slow),
        "grad_checkpointing",
        "channels_last",
        "deterministic",
    ],
)
def test_the_same_training_to_rounding(name, plain, run_of, tmp_path):
    # Rewriting for C++ takes minutes; how the loop lives with a compiled network does not.
    compiled = partial(torch.compile, backend="eager")
    config = run_of(tmp_path / "run", accum_steps=1, **{name: True})
    try:
        ended = session(config, patches={"cvt.training.network.torch.compile": compiled})
    finally:
        torch.use_deterministic_algorithms(False)
        torch.compiler.reset()
    assert ended.result, ended.text
    assert farthest(plain, tmp_path / "run", "model.") < ROUNDING
    ours, _ = load_checkpoint(tmp_path / "run" / "last.safetensors")
    theirs, _ = load_checkpoint(plain / "last.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(each.is_contiguous() for each in ours.values())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_near(precision, plain, run_of, tmp_path):
    """It keeps 11 bits (fp16) or 8 (bf16) of a number; only fp16 needs its losses scaled."""
    assert session(run_of(tmp_path / "run", precision=precision)).result
    assert ROUNDING < farthest(plain, tmp_path / "run", "model.") < 0.1
    assert (stored_facts(tmp_path / "run")["scaler"] is None) == (precision == "bf16")


def test_a_scale_that_fp16_came_down_to_is_not_forgotten(run_of, tmp_path):
    """Begun too high, the scale halves at an update or two, which are left out; then it holds."""
    high = partial(torch.amp.GradScaler, init_scale=2.0**21)
    config = run_of(tmp_path / "whole", epochs=2, precision="fp16")
    cut = {**config, "out": str(tmp_path / "cut")}
    with patch("torch.amp.GradScaler", high):
        assert session(config).result
        assert session(cut, STOP).error == "Interrupted"
        stopped = stored_facts(tmp_path / "cut")["scaler"]
        assert session({"resume": cut["out"]}).result
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    final = stored_facts(tmp_path / "cut")["scaler"]
    assert final["scale"] <= stopped["scale"] < 2.0**21
    assert 0 < final["_growth_tracker"] < 6


def test_compiled_processes_wait_for_the_last_chunk_too():
    """What distributes a network is seen through what torch.compile wraps around it."""
    from cvt.training.step import _gradients_shared

    class Distributed(torch.nn.parallel.DistributedDataParallel):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.waits = 0

        def no_sync(self):
            self.waits += 1
            return partial(print)

    network = Distributed()
    compiled = torch.compile(network, backend="eager")
    _gradients_shared(compiled, is_last=False)
    assert network.waits == 1
    _gradients_shared(compiled, is_last=True)
    assert network.waits == 1


def test_a_batch_without_good_pictures_leaves_running_statistics_alone():
    """Also alone, with a single chunk, where nothing but the update itself looks after them."""
    from cvt.training.config import MixConfig
    from cvt.training.losses import make_loss
    from cvt.training.step import StepOptions, train_step

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss_fn = make_loss(MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.0, loss="ce"))
    chunk = (torch.randn(1, 3, 4, 4), torch.tensor([1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = train_step(model, [chunk], loss_fn, optimizer, StepOptions(batch_size=4))
    assert result.num_images == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
