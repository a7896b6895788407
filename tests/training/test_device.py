"""The arithmetic that a run chooses for itself."""

import pytest
import torch
from torch import nn

import cvt
from cvt import runtime as device
from cvt.runtime import choose_precision, faster_precision, may_gain_from_bf16
from cvt.training.config import load_config
from cvt.training.loop import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("float32_s", "bf16_s", "chosen"),
    [(1.8, 1.0, "bf16"), (1.2, 1.0, "bf16"), (1.1, 1.0, "float32"), (1.0, 8.0, "float32")],
)
def test_bf16_has_to_be_clearly_quicker(monkeypatch, float32_s, bf16_s, chosen):
    monkeypatch.setattr(device, "_LEAST_PARAMS", 0)
    monkeypatch.setattr(device, "_PROBE_S", 0.0)
    seconds = {"float32": float32_s, "bf16": bf16_s}
    steps = []

    def step(model, images, precision):
        steps.append(precision)
        return seconds[precision] + 9 * (len(steps) <= 4)  # the first ones say nothing

    images = torch.zeros(2, 3)
    found, said = faster_precision(nn.Linear(3, 3), images, step)
    assert found == chosen
    assert all(f"{each:.2g} s" in said for each in seconds.values())
    assert steps.count("bf16") == steps.count("float32") >= 3


def test_a_try_leaves_no_trace(monkeypatch):
    """Neither in the network, its statistics included, nor in the generators."""
    monkeypatch.setattr(device, "_LEAST_PARAMS", 0)
    monkeypatch.setattr(device, "_PROBE_S", 0.0)
    model = cvt.create_model("cvt_nano_32", depth=1, drop_path_rate=0.5)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    random = torch.get_rng_state()
    assert faster_precision(model, torch.zeros(2, 3, 32, 32))[0] in ("bf16", "float32")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert model.training


def test_a_small_network_is_not_tried():
    def step(model, images, precision):
        raise AssertionError

    model = cvt.create_model("cvt_nano_32")
    chosen, said = faster_precision(model, torch.zeros(2, 3, 32, 32), step)
    assert chosen == "float32"
    assert "small" in said


def test_instructions_come_first(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(device, "cpu_computes", lambda dtype, has=has: has)
        assert may_gain_from_bf16(CPU) is has
        assert not may_gain_from_bf16(torch.device("meta"))
    monkeypatch.setattr(device, "cpu_computes", lambda dtype: True)
    assert choose_precision("auto", CPU) == "float32", "answers stay what they are"


def test_a_run_keeps_to_what_was_found(monkeypatch, tiny_config, tmp_path, capsys):
    """Also where the run is resumed, however quick the machine is by then."""
    asked = []

    def find(answer):
        def faster(model, images):
            asked.append(tuple(images.shape))
            return answer, f"Precision auto: {answer}."

        monkeypatch.setattr("cvt.training.setup.faster_precision", faster)

    monkeypatch.setattr("cvt.training.defaults.may_gain_from_bf16", lambda device: True)
    find("bf16")
    train(**tiny_config(epochs=1))
    assert "Precision auto: bf16." in capsys.readouterr().out
    assert load_config(tmp_path / "run" / "config.yaml").precision == "bf16"
    assert asked == [(4, 3, 16, 16)]
    find("float32")
    train(resume=str(tmp_path / "run"))
    assert load_config(tmp_path / "run" / "config.yaml").precision == "bf16"
    assert len(asked) == 1
