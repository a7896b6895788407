"""Logits and stage maps against transformers' CvT on fully randomised weights."""

import pytest
import torch

from cvt import Backbone
from cvt.parts.mlp import QuickGELU
from cvt.systems.cvt import PAPER_ROWS, ROWS
from cvt.weights.layouts import to_hugging_face

transformers = pytest.importorskip("transformers")


def make_port(spec):
    """Their network for our row; they read `drop_path_rate` and the like in training only."""
    stages = spec.stages
    config = transformers.CvtConfig(
        num_labels=spec.num_classes,
        embed_dim=[s.embed_dim for s in stages],
        num_heads=[s.num_heads for s in stages],
        depth=[s.depth for s in stages],
        drop_path_rate=[0.0] * 3,
    )
    return transformers.CvtForImageClassification(config).eval()


def with_quick_gelu(port):
    for module in port.modules():
        if isinstance(getattr(module, "activation", None), torch.nn.GELU):
            module.activation = QuickGELU()
    return port


def pair(spec, randomise):
    ours, theirs = Backbone(spec).eval(), make_port(spec)
    randomise(ours)
    theirs.load_state_dict(to_hugging_face(ours.state_dict()))
    return ours, theirs


def assert_equal(ours, theirs, image):
    with torch.no_grad():
        _, maps = ours.forward_intermediates(image)
        answer = theirs(image, output_hidden_states=True)
        logits = ours(image)
    assert logits.std() > 0.1  # equality of numbers near zero would show nothing
    for got, expected in zip([logits, *maps], [answer.logits, *answer.hidden_states], strict=True):
        # Float32 rounding, 6e-8 a step, over some hundred layers' sums, relative to the scale.
        scale = expected.abs().max().item()
        torch.testing.assert_close(got, expected, atol=2e-5 * scale, rtol=0)


WIDE = "cvt_w24"
LIGHT = [name for name in PAPER_ROWS if name != WIDE]


@pytest.mark.parametrize("name", LIGHT)
def test_equal_given_the_same_activation(randomise, name):
    ours, theirs = pair(ROWS[name], randomise)
    with_quick_gelu(theirs)
    for size in [(224, 224), (96, 160), (97, 131)]:
        assert_equal(ours, theirs, torch.randn(2, 3, *size))


@pytest.mark.parametrize(
    "changes", [{"depth": (1, 2, 3)}, pytest.param({}, id="whole", marks=pytest.mark.slow)]
)
def test_the_widest_is_equal_given_the_same_activation(randomise, changes):
    ours, theirs = pair(ROWS[WIDE].change(**changes), randomise)
    with_quick_gelu(theirs)
    for size in [(64, 64), (49, 75)]:
        assert_equal(ours, theirs, torch.randn(1, 3, *size))


def test_equal_to_the_port_as_it_is_with_gelu(randomise):
    spec = ROWS["cvt_13"].change(depth=(1, 2, 3), act_layer="gelu")
    ours, theirs = pair(spec, randomise)
    assert_equal(ours, theirs, torch.randn(2, 3, 75, 64))


def test_the_port_s_activation_is_another(randomise):
    ours, theirs = pair(ROWS["cvt_13"].change(depth=(1, 2, 3)), randomise)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = (ours(image) - theirs(image).logits).abs().max() / ours(image).abs().max()
    assert difference > 1e-3
