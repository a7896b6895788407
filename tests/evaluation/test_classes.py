"""Outputs are found by the names of classes, never by the place of a folder among others."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.data import ArraySet
from cvt.errors import UserError
from cvt.evaluation.evaluate import matched_labels
from cvt.evaluation.imagenet import imagenet_synsets

names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=9,
                 unique_by=lambda name: unicodedata.normalize("NFC", name))  # fmt: skip


def data(*classes, labels=None):
    labels = range(len(classes)) if labels is None else labels
    return ArraySet(np.zeros((len(labels), 1, 1), np.uint8), list(labels), classes, "letters")


def outputs(of, model, num_outputs=None):
    return matched_labels(of, model, num_outputs or len(model))[0].tolist()


@given(names=names, seed=st.integers(0, 99))
def test_any_order_any_form_and_any_part_of_the_classes(names, seed):
    order = np.random.default_rng(seed).permutation(len(names))[: 1 + seed % len(names)]
    for form in ("NFC", "NFD"):
        given = [unicodedata.normalize(form, names[index]) for index in order]
        assert outputs(data(*given), names) == order.tolist()


def test_case_does_not_matter_where_it_leaves_no_choice():
    assert outputs(data("apple", "Banana"), ("Apple", "banana")) == [0, 1]
    assert outputs(data("banana", "APPLE"), ("Apple", "banana")) == [1, 0]
    assert outputs(data("A", "a"), ("a", "A")) == [1, 0]
    with pytest.raises(UserError, match="the model does not have: 'AB'"):
        outputs(data("AB", "c"), ("ab", "Ab", "c"))


def test_numbers_are_numbers_whatever_their_order():
    numbers = sorted(map(str, range(12)))
    assert numbers[2] == "10"
    assert outputs(data(*numbers), tuple(map(str, range(12)))) == [int(each) for each in numbers]
    found, told = matched_labels(data(*numbers), [f"word {each}" for each in range(12)], 12)
    assert found.tolist() == [int(each) for each in numbers]
    assert "taken for the outputs'" in told[0]
    assert outputs(data(*numbers), None, 12) == [int(each) for each in numbers]


def test_numbers_from_one_are_not_shifted_in_silence():
    with pytest.raises(UserError, match="does not have: '3'"):
        outputs(data("1", "2", "3"), ("ant", "bee", "cow"))


def test_words_are_taken_by_place_only_where_the_model_has_none():
    found, told = matched_labels(data("ant", "bee"), None, 2)
    assert found.tolist() == [0, 1]
    assert "does not name its classes" in told[0]
    with pytest.raises(UserError, match="the model of 3 outputs names none"):
        outputs(data("ant", "bee"), None, 3)
    with pytest.raises(UserError, match=r"2 of 2 classes .* 'ant', 'bee' \(2 images\).* has 'x1'"):
        outputs(data("ant", "bee"), ("x1", "x2"))


def test_classes_without_pictures_need_not_be_known():
    assert outputs(data("ant", "cow", "bee", labels=[0, 2]), ("bee", "ant")) == [1, -1, 0]
    with pytest.raises(UserError, match=r"1 of 3 classes .*: 'cow' \(2 images\)"):
        outputs(data("ant", "cow", "bee", labels=[0, 1, 1]), ("bee", "ant"))


def test_imagenet_is_known_by_words_and_by_numbers():
    from timm.data import ImageNetInfo

    synsets = imagenet_synsets()
    words = ImageNetInfo("imagenet-1k").label_descriptions()
    some = [synsets[index] for index in (7, 999, 0)]
    assert outputs(data(*some), words) == [7, 999, 0]
    assert outputs(data(*some), None, 1000) == [7, 999, 0]
    assert outputs(data(*words), synsets) == list(range(1000))
