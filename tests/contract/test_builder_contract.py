"""Words of timm's builder besides a model's own fields: device, dtype, levels, output stride."""

import pytest
import timm
import torch

import cvt
from cvt.systems.catalog import ROWS, timm_name
from networks import NAMES, changes_of, image

BOTH = pytest.mark.parametrize("create", [timm.create_model, cvt.create_model])
BASELINES = ("resnet18", "efficientnet_b0")


def named(name: str, create) -> str:
    return timm_name(name) if create is timm.create_model else name


@BOTH
@pytest.mark.parametrize("name", [*NAMES, *BASELINES])
def test_device_and_dtype(name, create):
    model = create(named(name, create), device="meta", dtype=torch.bfloat16, num_classes=7)
    everything = (*model.parameters(), *model.buffers())
    assert {each.device.type for each in everything} == {"meta"}
    assert {each.dtype for each in everything if each.is_floating_point()} == {torch.bfloat16}
    assert model.num_classes == 7


@BOTH
def test_a_dtype_rounds_the_same_weights(create):
    torch.manual_seed(0)
    exact = create("t2t_nano_32", depth=(0, 0, 1)).state_dict()
    torch.manual_seed(0)
    model = create("t2t_nano_32", depth=(0, 0, 1), device="cpu", dtype=torch.bfloat16)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, exact[key].bfloat16()), key
    assert model.eval()(image("t2t_nano_32").bfloat16()).dtype == torch.bfloat16


@BOTH
def test_of_a_pyramid_too(create):
    model = create(
        "cvt_13", features_only=True, out_indices=(0, 3), device="meta", dtype=torch.float16
    )
    assert {each.dtype for each in model.parameters()} == {torch.float16}
    maps = model(torch.empty(1, 3, 64, 64, device="meta", dtype=torch.float16))
    assert [fmap.shape[2] for fmap in maps] == [16, 2]


@BOTH
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (3,), [1, 3], 4], ids=str)
def test_the_level_behind_the_last_comes_by_itself(wanted, create):
    given = create("cvt_13", depth=1, features_only=True, out_indices=wanted).eval()
    asked = create("cvt_13", depth=1, features_only=True, out_indices=wanted, extra_level=True)
    assert given.feature_info.reduction()[-1] == 32
    assert given.feature_info.channels() == asked.feature_info.channels()
    asked.load_state_dict(given.state_dict())
    with torch.no_grad():
        for one, other in zip(given(image("cvt_13")), asked.eval()(image("cvt_13")), strict=True):
            assert torch.equal(one, other)


@BOTH
@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        ("cvt_13", {}, (0, 4)),
        ("cvt_13", {}, (-4, 0)),
        ("cvt_13", {}, 5),
        ("cvt_13", {}, 0),
        ("cvt_13", {}, ()),
        ("cvt_13", {"extra_level": False}, (0, 1, 2, 3)),
        ("cvt_13", {"extra_level": True}, (4,)),
        ("vit_nano_32", {}, (5,)),
        ("tnt_nano_32", {"depth": 2}, (0, 1, 2)),
    ],
    ids=str,
)
def test_levels_that_are_not_there_are_named_with_those_that_are(name, changes, wanted, create):
    with pytest.raises(cvt.UserError, match=r"Got out_indices=.* has levels 0 to \d, at strides"):
        create(name, features_only=True, out_indices=wanted, **changes)


def test_the_sentence_names_the_level_that_can_be_added():
    with pytest.raises(cvt.UserError, match=r"extra_level=True one at 16.*encoder_depth=4 or"):
        timm.create_model("cvt_nano_32", features_only=True, out_indices=(0, 1, 2, 3, 4))


@BOTH
@pytest.mark.parametrize(
    ("name", "changes", "natural"),
    [
        ("cvt_13", {}, 16),
        ("cvt_13", {"extra_level": True}, 32),
        ("cvt_13", {"out_indices": (0, 1)}, 8),
        ("cvt_13", {"out_indices": (0, 1, 2, 3)}, 32),
        ("cvt_13", {"q_stride": (1, 1, 2)}, 32),
        ("cvt_nano_32", {}, 8),
        ("pvt_tiny", {}, 32),
        ("vit_nano_32", {}, 4),
        ("tnt_nano_32", {}, 4),
        ("t2t_vit_7", {}, 16),
    ],
    ids=str,
)
def test_the_natural_output_stride_is_taken_and_a_finer_one_refused(name, changes, natural, create):
    with torch.device("meta"):
        for stride in (natural, 2 * natural):
            model = create(name, features_only=True, output_stride=stride, **changes)
            assert max(model.feature_info.reduction()) == natural
        with pytest.raises(cvt.UserError, match=rf"dilated; ask for output_stride={natural} ") as e:
            create(name, features_only=True, output_stride=natural // 2, **changes)
    assert "q_stride" not in str(e.value)


@BOTH
def test_an_output_stride_of_the_whole_network(create):
    with torch.device("meta"):
        assert create("cvt_13", output_stride=16).num_classes == 1000
        with pytest.raises(cvt.UserError, match=r"out_indices=\(0, 1\) \(encoder_depth=3\)"):
            create("cvt_13", output_stride=8)
        maps = create("resnet18", features_only=True, output_stride=None)
    assert maps.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_a_baselines_output_stride_is_timms_business():
    """It dilates, with a classifier as well."""
    model = cvt.create_model("resnet50", output_stride=8).eval()
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[2:] == (8, 8)
    assert model.spec == ROWS["resnet50"]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_knows_the_strides_of_its_levels(name):
    with torch.device("meta"):
        model = cvt.create_model(name, **changes_of(name))
    assert tuple(each["reduction"] for each in model.feature_info) == model.spec.level_strides
