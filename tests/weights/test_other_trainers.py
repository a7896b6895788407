"""Checkpoints that other training loops write, each as its own code writes it."""

import argparse
import datetime
import os
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cvt
from cvt.errors import Remark, UserError
from cvt.weights.layouts import below_prefix, to_hugging_face, to_microsoft
from cvt.weights.pickles import read_pickle
from cvt.weights.source import names_weights, open_weights


@pytest.fixture(scope="module")
def nano():
    return cvt.create_model("cvt_nano_32", num_classes=3, depth=1, embed_dim=16, num_heads=2)


@pytest.fixture(scope="module")
def state():
    """A whole row, so that bare tensors are recognised."""
    return cvt.create_model("cvt_nano_32", num_classes=3).state_dict()


class _Lit(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network


def test_timm_s_arguments_and_numpy_s_figures_are_passed_over(tmp_path, state, same):
    """As timm's CheckpointSaver writes them, with what else lies about in such files."""
    path = tmp_path / "model_best.pth.tar"
    extras = {
        "epoch": 1,
        "arch": "cvt_nano_32",
        "args": argparse.Namespace(lr=0.1, output=pathlib.Path("/tmp/x"), mean=(0.5, 0.5)),
        "metric": np.float64(81.5),
        "best": np.float32(3),
        "history": np.arange(3.0),
        "when": datetime.datetime(2026, 1, 1),
    }
    torch.save({"state_dict": state, **extras}, path)
    assert same(open_weights(path)[0], state)


class _Namespace(argparse.Namespace):
    """Would run code when it is unpickled, under a name like the one that is passed over."""

    def __reduce__(self):
        return os.mkdir, ("never",)


def test_only_those_names_are_passed_over(tmp_path, state, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for extra in (_Namespace(), argparse.Action([], "x"), np.random.RandomState(0)):
        torch.save({"state_dict": state, "args": extra}, "m.pth")
        with pytest.raises(UserError, match="is refused: to open it"):
            read_pickle("m.pth")
    torch.save({"state_dict": state, "args": argparse.Namespace(inner=_Namespace())}, "m.pth")
    with pytest.raises(UserError, match=r"mkdir' would have to be run"):
        read_pickle("m.pth")
    assert not pathlib.Path("never").exists()


@pytest.mark.parametrize("rename", [lambda s: s, to_microsoft, to_hugging_face])
@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "a.b.c.", "module.model.", "0."])
def test_one_prefix_before_all_names_is_found(tmp_path, state, same, rename, prefix):
    renamed = {f"{prefix}{name}": tensor for name, tensor in rename(state).items()}
    torch.save({"state_dict": renamed, "pytorch-lightning_version": "2.6"}, tmp_path / "x.ckpt")
    got, record = open_weights(tmp_path / "x.ckpt")
    assert same(got, state)
    assert (record.model, record.spec.num_classes) == ("cvt_nano_32", 3)


@given(
    prefix=st.from_regex(r"[a-z_]{1,6}(\.[a-z_0-9]{1,6}){0,2}\.", fullmatch=True),
    name=st.sampled_from(["vit_nano_32", "pvt_nano_32", "tnt_nano_32", "t2t_nano_32"]),
)
def test_so_it_is_for_every_system(prefix, name):
    with torch.device("meta"):
        names = cvt.create_model(name, depth=1).state_dict()
    renamed = {f"{prefix}{key}": tensor for key, tensor in names.items()}
    assert list(below_prefix(renamed, source="x")) == list(names)


def test_two_networks_are_a_sentence(tmp_path, state):
    both = {f"{prefix}{name}": t for prefix in ("model.", "ema.") for name, t in state.items()}
    torch.save({"state_dict": both}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"holds 2 networks, under the prefixes 'ema\.', 'model\.'"):
        open_weights(tmp_path / "x.ckpt")
    torch.save({"student": state, "teacher": dict(state)}, tmp_path / "y.ckpt")
    with pytest.raises(UserError, match="several networks, under 'student', 'teacher'"):
        open_weights(tmp_path / "y.ckpt")


def test_what_lies_beside_the_network_is_named(tmp_path, state, same):
    whole = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": whole | {"criterion.weight": torch.ones(3)}}, tmp_path / "x.ckpt")
    with pytest.warns(Remark, match=r"left out are 1 tensors, the first 'criterion\.weight'"):
        got, _ = open_weights(tmp_path / "x.ckpt")
    assert same(got, state)


def test_averaged_models_and_compiled_ones(tmp_path, same):
    model = cvt.create_model("cvt_nano_32", num_classes=3)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)
    torch.save({"model": {}, "model_ema": averaged.state_dict()}, tmp_path / "x.pth")
    assert same(open_weights(tmp_path / "x.pth")[0], model.state_dict())
    lit = _Lit(torch.compile(model))
    torch.save({"state_dict": lit.state_dict()}, tmp_path / "y.ckpt")
    assert same(open_weights(tmp_path / "y.ckpt")[0], model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}},
        lambda s: {"net": s, "acc": 0.5},
        lambda s: {"network": {"params": s}},
        lambda s: {"my_own_word": s, "optimizer": {"state": {}, "param_groups": []}},
        lambda s: {"weights": {"anything": s}},
        lambda s: {"vit": s, "optimizer_shadow": dict(s)},
        lambda s: {"state_dict": s, "model_ema": {"decay": 0.9}},
    ],
)
def test_the_weights_are_found_under_any_key(tmp_path, state, same, wrap):
    torch.save(wrap(state), tmp_path / "x.pth")
    assert same(open_weights(tmp_path / "x.pth")[0], state)


def test_what_names_itself_many_times_ends(tmp_path):
    many: dict = {f"key{index}": {} for index in range(300)}
    for each in many.values():
        each.update(many)
    torch.save(many, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_pickle(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x", "x.ckpt", "x.weights", "x.tar", "x.safetensors"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_first_bytes_say_what_a_file_is(tmp_path, state, same, name, kind):
    path = tmp_path / name
    if kind == "safetensors":
        cvt.weights.checkpoint.write_safetensors(path, state, {})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert names_weights(str(path))
    assert same(open_weights(path)[0], state)


def test_other_files_are_no_weights(tmp_path):
    for name, content in (("a", b""), ("b", b"PK\x03\x04" + bytes(9)), ("c", b"\xff\xd8\xff")):
        (tmp_path / name).write_bytes(content)
        assert not names_weights(str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe")
    assert not names_weights(str(tmp_path / "pipe"))
