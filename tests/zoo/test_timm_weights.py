"""Trained baselines come from timm, or a sentence says why they don't."""

import pytest
from torch import nn

import cvt
from cvt.errors import UserError
from cvt.zoo.create import build_trained


def test_out_of_reach_is_a_sentence(monkeypatch):
    monkeypatch.setattr("cvt.zoo.create.is_out_of_reach", lambda repo_id: True)
    with pytest.raises(UserError, match=r"Cannot get timm's weights of 'resnet18': .* go online"):
        cvt.create_model("resnet18", pretrained=True)


def test_a_download_that_breaks_off_is_the_same_sentence(monkeypatch):
    monkeypatch.setattr("cvt.zoo.create.is_out_of_reach", lambda repo_id: False)

    def broken(**changes):
        raise ConnectionError("reset by peer")

    with pytest.raises(UserError, match="Cannot get timm's weights of 'resnet18'"):
        build_trained("resnet18", broken, {})


def test_weights_are_asked_of_timm_with_the_changes(monkeypatch):
    monkeypatch.setattr("cvt.zoo.create.is_out_of_reach", lambda repo_id: False)
    asked = {}

    def build(**changes):
        asked.update(changes)
        return nn.Identity()

    build_trained("resnet18", build, {"num_classes": 3})
    assert asked == {"pretrained": True, "num_classes": 3}
