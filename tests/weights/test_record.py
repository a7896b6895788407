import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.systems.cvt import ROWS
from cvt.weights.record import Preprocessing, Record

sides = st.integers(1, 2000)


@given(
    st.builds(
        Preprocessing,
        input_size=st.tuples(st.just(3), sides, sides),
        interpolation=st.sampled_from(["bicubic", "bilinear"]),
        crop_pct=st.floats(0.01, 1),
        crop_mode=st.sampled_from(["center", "squash"]),
    )
)
def test_preprocessing_goes_to_json_and_to_timm_and_back(preprocessing):
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    assert Preprocessing.from_timm(preprocessing.to_timm()) == preprocessing
    assert preprocessing.size == preprocessing.input_size[1:]


def test_timm_keys_that_are_not_preprocessing_are_left_out():
    cfg = {
        "input_size": [1, 32, 48],
        "mean": [0.5],
        "std": [0.5],
        "num_classes": 7,
        "crop_mode": None,
    }
    got = Preprocessing.from_timm(cfg)
    assert got == Preprocessing(input_size=(1, 32, 48), mean=(0.5,), std=(0.5,))


def test_timm_s_own_transform_resizes_as_described():
    """256 then the middle 224; squashed to 384."""
    from timm.data import create_transform

    kept = create_transform(**Preprocessing(crop_pct=0.875).to_timm())
    assert kept.transforms[0].size == 256
    assert tuple(kept.transforms[1].size) == (224, 224)
    squash = Preprocessing(input_size=(3, 384, 384), crop_pct=1.0, crop_mode="squash")
    squashed = create_transform(**squash.to_timm())
    assert tuple(squashed.transforms[0].size) == (384, 384)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input_size": (224, 224)}, "channels, height, width"),
        ({"input_size": (3, 0, 224)}, "positive"),
        ({"input_size": 224}, "list of numbers"),
        ({"mean": (0.5,)}, "each of the 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, "above 0"),
        ({"crop_pct": 1.5}, r"\(0, 1\]"),
        ({"crop_pct": "87%"}, r"\(0, 1\]"),
        ({"interpolation": "bicubc"}, "Did you mean 'bicubic'"),
        ({"crop_mode": "border"}, "center, squash"),
    ],
)
def test_an_unusable_value_is_named(wrong, says):
    with pytest.raises(UserError, match=says):
        Preprocessing(**wrong)


def test_default_preprocessing_follows_the_row():
    assert Preprocessing.default(ROWS["cvt_13"]) == Preprocessing()
    small = Preprocessing.default(ROWS["cvt_nano_32"].change(in_chans=1))
    assert (small.input_size, small.crop_pct, len(small.mean)) == ((1, 32, 32), 1.0, 1)


def test_record_goes_to_json_and_back(tiny_record):
    assert Record.from_dict(json.loads(json.dumps(tiny_record.to_dict()))) == tiny_record
    bare = Record(model="cvt_21", spec=ROWS["cvt_21"])
    assert Record.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


def test_unknown_key_names_the_nearest(tiny_record):
    with pytest.raises(UserError, match="Did you mean 'class_names'"):
        Record.from_dict({**tiny_record.to_dict(), "class_name": []})
    plain = tiny_record.to_dict()
    plain["preprocessing"]["crop"] = 1
    with pytest.raises(UserError, match="unknown key 'crop' in the preprocessing"):
        Record.from_dict(plain)


def test_missing_spec_and_wrong_kind_are_sentences():
    with pytest.raises(UserError, match="no 'spec'"):
        Record.from_dict({"model": "cvt_13"})
    with pytest.raises(UserError, match="Got list"):
        Record.from_dict([])


def test_class_names_have_to_fit_the_head(tiny_spec):
    with pytest.raises(UserError, match="Got 2 class names for a model with 5 outputs"):
        Record(model="cvt_13", spec=tiny_spec, class_names=("a", "b"))
