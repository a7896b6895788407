"""Small models in the published form, with every tensor randomised, running statistics included."""

import errno
import os

import pytest
import torch

from cvt import Backbone, BackboneSpec
from cvt.systems.cvt import ROWS
from cvt.weights.record import Preprocessing, Record

CLASS_NAMES = ("cat", "dog", "frog", "ship", "crane")


@pytest.fixture
def tiny_spec() -> BackboneSpec:
    return ROWS["cvt_13"].change(
        embed_dim=(8, 16, 24), num_heads=(1, 2, 3), depth=(1, 2, 3), num_classes=5
    )


@pytest.fixture
def make_model(randomise):
    """Returns a function from spec to a randomised model in eval mode."""

    def make(spec: BackboneSpec, seed: int = 0) -> Backbone:
        return randomise(Backbone(spec), seed).eval()

    return make


@pytest.fixture
def tiny_model(tiny_spec, make_model) -> Backbone:
    return make_model(tiny_spec)


@pytest.fixture
def tiny_record(tiny_spec) -> Record:
    return Record(
        model="cvt_13",
        spec=tiny_spec,
        preprocessing=Preprocessing(input_size=(3, 64, 64), crop_pct=0.9),
        class_names=CLASS_NAMES,
        metrics={"top1": 81.25},
        licence="apache-2.0",
        source="a test",
    )


@pytest.fixture
def same():
    """Returns a function that compares two state dicts bit for bit, names included."""

    def compare(got, expected) -> bool:
        return set(got) == set(expected) and all(
            got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
            for name, tensor in expected.items()
        )

    return compare


@pytest.fixture
def full_disk(monkeypatch):
    """Returns a function after which nothing more can be brought to the disk."""

    def fill() -> None:
        def fsync(_handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)

    return fill
