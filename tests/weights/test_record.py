import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.plain import from_plain, to_plain
from cvt.systems.cvt import ROWS
from cvt.weights.record import Preprocessing, Record

sides = st.integers(1, 2000)


@given(
    st.builds(
        Preprocessing,
        input_size=st.tuples(st.just(3), sides, sides),
        interpolation=st.sampled_from(["bicubic", "bilinear"]),
        crop_pct=st.floats(0.2, 1),
        crop_mode=st.sampled_from(["center", "squash"]),
    )
)
def test_preprocessing_goes_to_json_and_to_timm_and_back(preprocessing):
    written = json.loads(json.dumps(to_plain(preprocessing)))
    assert from_plain(Preprocessing, written, "it") == preprocessing
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
        ({"input_size": (224, 224)}, "Got 2 values for input_size .*expected a list of 3"),
        ({"input_size": (3, 0, 224)}, "input_size .*expected a number from 1 to 4096"),
        ({"input_size": (3, 10**9, 224)}, "input_size .*expected a number from 1 to 4096"),
        ({"input_size": 224}, "Got 224 for input_size .*expected a list"),
        ({"input_size": (3, 224.5, 224)}, "Got 224.5 .*expected a whole number"),
        ({"mean": (0.5,)}, "each of the 3 channels"),
        ({"mean": (0.5, float("nan"), 0.5)}, "Got nan for mean .*expected a number"),
        ({"mean": None}, "Got None for mean"),
        ({"std": (0.0, 1.0, 1.0)}, "expected a number above 0"),
        ({"crop_pct": 1.5}, "expected a number above 0 to 1"),
        ({"crop_pct": "87%"}, "Got '87%' for crop_pct in the preprocessing, expected a number"),
        ({"crop_pct": 1e-3}, "at most 16384 pixels a side before the crop"),
        ({"interpolation": "bicubc"}, "Did you mean 'bicubic'"),
        ({"interpolation": ["bicubic"]}, "for interpolation in the preprocessing, expected one of"),
        ({"crop_mode": "border"}, "'center', 'squash'"),
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
    with pytest.raises(UserError, match=r"the unknown key 'preprocessing\.crop' in"):
        Record.from_dict(plain)


def test_missing_spec_and_wrong_kind_are_sentences():
    with pytest.raises(UserError, match="There is no 'spec' in the record"):
        Record.from_dict({"model": "cvt_13"})
    with pytest.raises(UserError, match="for the record, expected keys with values"):
        Record.from_dict([])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, "Got None for model in the record, expected text"),
        ({"model": "x" * 10**6}, "Got 1,000,000 letters for model"),
        ({"class_names": 3}, "Got 3 for class_names"),
        ({"class_names": ["a", "b", 3, "d", "e"]}, "Got 3 for class_names"),
        ({"class_names": ["a", "b", "c", "d", "e" * 1001]}, "Got 1,001 letters for class_names"),
        ({"multi_label": "yes"}, "Got 'yes' for multi_label"),
        ({"metrics": {"top1": "high"}}, "Got 'high' for metrics"),
        ({"preprocessing": None}, "Got None for preprocessing"),
        ({"spec": None}, "Got NoneType for a spec"),
        ({"spec": {"kind": []}}, r"Got a spec of kind \[\]"),
    ],
)
def test_a_value_of_another_kind_is_named(tiny_record, change, says):
    with pytest.raises(UserError, match=says):
        Record.from_dict({**tiny_record.to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 100_000}, "stages.depth in the spec, expected a number from 0 to 512"),
        ({"embed_dim": 65536}, "expected a number from 1 to 16384"),
        ({"embed_dim": True}, "Got True for stages.embed_dim"),
        ({"num_heads": 3.0}, "Got 3.0 for stages.num_heads"),
        ({"mlp_ratio": float("inf")}, "Got inf for stages.mlp_ratio"),
        ({"projection": {}}, "for stages.projection"),
        ({"drop_path_rate": -0.1}, "expected a number from 0 to 1"),
    ],
)
def test_a_stage_is_bounded(tiny_record, change, says):
    plain = json.loads(json.dumps(tiny_record.to_dict()))
    plain["spec"]["stages"][1].update(change)
    with pytest.raises(UserError, match=says):
        Record.from_dict(plain)


def test_so_are_the_stages_and_the_classes(tiny_record):
    plain = json.loads(json.dumps(tiny_record.to_dict()))
    for name, value, says in (
        ("stages", plain["spec"]["stages"] * 10, "Got 30 items for stages"),
        ("stages", [{}], "There is no 'stages.embed_dim'"),
        ("stages", 3, "Got 3 for stages"),
        ("num_classes", 10**7, "expected a number from 0 to 1000000"),
        ("img_size", None, "Got None for img_size"),
        ("img_size", [224, "224"], "Got '224' for img_size"),
    ):
        with pytest.raises(UserError, match=says):
            Record.from_dict({**plain, "spec": {**plain["spec"], name: value}})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(data=st.data(), value=json_values)
def test_any_value_anywhere_is_right_or_a_sentence(data, value):
    """Each key of a record, at any depth, is given some JSON."""
    plain = json.loads(json.dumps(Record(model="cvt_13", spec=ROWS["cvt_13"]).to_dict()))
    place = plain
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = value
    with contextlib.suppress(UserError):
        assert Record.from_dict(plain).model == plain["model"]


def test_class_names_have_to_fit_the_head(tiny_spec):
    with pytest.raises(UserError, match="Got 2 class names for a model with 5 outputs"):
        Record(model="cvt_13", spec=tiny_spec, class_names=("a", "b"))
