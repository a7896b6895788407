"""Every system in timm's registry: under whose name, and whose class answers to it."""

import pytest
import timm
import torch

import cvt
from cvt.parts.model import VisionModel
from cvt.systems.catalog import ROWS, SYSTEMS, timm_name
from cvt.systems.system import is_ours
from networks import FORMS, ROW_NAMES, changes_of, image
from randomise import randomise

BASELINES = tuple(name for name, row in ROWS.items() if row.made_by_timm)


def is_timms(name: str) -> bool:
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("timm.")


@pytest.mark.parametrize("name", ROW_NAMES)
def test_a_row_is_registered_beside_a_name_that_timm_has(name):
    registered = timm_name(name)
    assert registered == (f"cvt_{name}" if is_timms(name) else name)
    assert timm.model_entrypoint(registered).__module__ == "cvt.zoo.timm_models"
    with torch.device("meta"):
        ours = timm.create_model(registered)
        if is_timms(name):
            assert not isinstance(timm.create_model(name), VisionModel)
    assert isinstance(ours, VisionModel)
    assert ours.spec == ROWS[name]
    assert ours.pretrained_cfg["architecture"] == registered


def test_the_flag_of_each_system_is_true_of_timm():
    for system in SYSTEMS:
        theirs = {is_timms(name) for name in system.rows if not is_ours(name)}
        if system.name not in ("ResNet", "EfficientNet"):
            assert theirs == {system.is_in_timm}, system.name
        assert not any(is_timms(name) for name in system.rows if is_ours(name))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_timms_under_its_own_name(name):
    assert is_timms(name)
    assert not timm.is_model(f"cvt_{name}")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_a_baseline_computes_what_timms_does(name):
    """Statistics of trained networks are near these: a randomised batch norm is no neutral one."""
    theirs, ours = timm.create_model(name).eval(), cvt.create_model(name).eval()
    assert type(ours) is type(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(image(name)), theirs(image(name)))
    assert (ours.spec, ours.num_prefix_tokens) == (ROWS[name], 0)
    other = cvt.create_model(name, num_classes=7, in_chans=1).eval()
    assert (other.num_classes, other.in_chans) == (7, 1)
    assert other(image(name)[:, :1]).shape == (2, 7)
    maps = cvt.create_model(name, features_only=True).eval()(image(name))
    assert [64 // fmap.shape[2] for fmap in maps] == [2, 4, 8, 16, 32]


def test_a_baselines_wrong_field_names_the_nearest():
    with pytest.raises(cvt.UserError, match=r"'num_clases'.*'num_classes'"):
        cvt.create_model("resnet18", num_clases=3)
    with pytest.raises(cvt.UserError, match=r"timm cannot build .*pool type: token"):
        cvt.create_model("resnet18", global_pool="token")


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "pvt_tiny", "t2t_vit_7", "tnt_s_patch16_224"]
)
def test_changes_reach_a_system_through_timm(name):
    depth = {"pvt_tiny": (1, 1, 1, 1), "t2t_vit_7": (0, 0, 1)}.get(name, 1)
    model = timm.create_model(timm_name(name), depth=depth, num_classes=7, in_chans=4)
    assert (model.num_classes, model.in_chans) == (7, 4)
    assert model.eval()(torch.randn(1, 4, 64, 80)).shape == (1, 7)
    with pytest.raises(cvt.UserError, match=r"'num_head'.*'num_heads'"):
        timm.create_model(timm_name(name), num_head=1)


@pytest.mark.parametrize(
    "name", ["deit_nano_32", "pvt_nano_32", "t2t_nano_32", "t2t_vit_t_14", "tnt_nano_32"]
)
@pytest.mark.parametrize("size", [(24, 16), (20, 36)], ids=str)
def test_set_input_size_gives_what_interpolation_at_forward_does(name, size):
    size = size if name.endswith("_32") else (4 * size[0], 4 * size[1])
    model = randomise(cvt.create_model(name, **changes_of(name))).eval()
    images = image(name, 1, size)
    learned = [key for key, _ in model.named_parameters()]
    with torch.no_grad():
        at_forward = model(images)
        model.set_input_size(size)
        assert torch.equal(model(images), at_forward)
    assert model.spec.img_size == size
    assert [key for key, _ in model.named_parameters()] == learned
    again = randomise(cvt.create_model(name, **changes_of(name), img_size=size), seed=1).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images), at_forward)


@pytest.mark.parametrize("name", FORMS)
def test_too_small_an_image_gets_a_sentence(name):
    with torch.device("meta"):
        model = cvt.create_model(name).eval()
        least = model.spec.min_size
        assert model(torch.empty(1, 3, least, least + 1)).shape == (1, model.num_classes)
        if least > 1:
            with pytest.raises(cvt.UserError, match=rf"too small.*smallest side is {least} pixels"):
                model(torch.empty(1, 3, least - 1, 2 * least))
