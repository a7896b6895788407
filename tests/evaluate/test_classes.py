import pytest

from cvt.errors import UserError
from cvt.evaluate.classes import matched_labels


def test_same_names_in_another_order_are_matched_by_name():
    assert matched_labels(("dog", "ant", "cat"), ("ant", "cat", "dog"), 3).tolist() == [2, 0, 1]


@pytest.mark.parametrize("model", [None, ("n01", "n02")])
def test_names_that_cannot_be_compared_are_matched_by_position(model):
    assert matched_labels(("ant", "cat"), model, 2).tolist() == [0, 1]


def test_other_classes_are_refused():
    with pytest.raises(UserError, match="data with 2 classes for a model with 3 outputs"):
        matched_labels(("ant", "cat"), ("ant", "cat", "dog"), 3)
    with pytest.raises(UserError, match=r"the class 'cow', which .* \(1 of 2 are missing\)"):
        matched_labels(("ant", "cow"), ("ant", "cat"), 2)
