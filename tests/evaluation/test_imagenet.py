import pytest
import torch

from cvt.errors import UserError
from cvt.evaluation.imagenet import (
    imagenet_outputs,
    imagenet_synsets,
    read_classes,
    real_labels,
    subset_synsets,
)
from cvt.weights.published import imagenet_class_names

TENCH, GOLDFISH = "n01440764", "n01443537"
IN_ORDER = torch.arange(1000)


def test_lists_inside_timm_are_what_they_should_be():
    synsets = imagenet_synsets()
    assert synsets[:2] == (TENCH, GOLDFISH)
    assert synsets == tuple(sorted(set(synsets)))
    for letter, first in (("a", "n01498041"), ("r", GOLDFISH)):
        subset = subset_synsets(letter)
        assert (len(subset), subset[0]) == (200, first)
        assert list(subset) == sorted(set(subset) & set(synsets))
    labels = real_labels()
    assert len(labels) == 50_000
    assert sum(not each for each in labels) == 3_163
    assert labels[:5] == ((), (970, 795), (230, 231), (809,), (516, 850))


def test_outputs_of_the_published_weights_and_of_unnamed_ones_stand_in_imagenets_order():
    for names in (None, imagenet_class_names(), [n.split(",")[0] for n in imagenet_class_names()]):
        assert imagenet_outputs(names, 1000).equal(IN_ORDER)


def test_half_of_the_words_may_be_somebodys_own():
    own = [f"my word {number}" for number in range(500)]
    assert imagenet_outputs([*own, *imagenet_class_names()[500:]], 1000).equal(IN_ORDER)
    with pytest.raises(UserError, match="first class is 'my word 0'"):
        imagenet_outputs([*own, "my word 500", *imagenet_class_names()[501:]], 1000)


def test_wordnet_numbers_are_matched_by_name():
    backwards = imagenet_synsets()[::-1]
    assert imagenet_outputs(backwards, 1000).equal(999 - IN_ORDER)
    assert imagenet_outputs(("background", *imagenet_synsets()), 1001).equal(IN_ORDER + 1)


@pytest.mark.parametrize(
    ("names", "num_outputs", "words"),
    [
        (None, 10, "with 10 outputs, expected the 1,000 classes"),
        (None, 1001, "with 1001 outputs"),
        ([f"street {number}" for number in range(1000)], 1000, "first class is 'street 0'"),
        (imagenet_class_names()[::-1], 1000, "in ImageNet's order"),
        (["x", "y", *imagenet_synsets()[2:]], 1000, rf"without the class {TENCH} \(2 of"),
    ],
)
def test_other_models_are_refused(names, num_outputs, words):
    with pytest.raises(UserError, match=words):
        imagenet_outputs(names, num_outputs)


def test_folders_are_classes_by_name_whatever_their_order(write, tmp_path):
    for name in (TENCH, GOLDFISH, ".hidden"):
        write(tmp_path / name / "deep" / "x.png", 0)
    write(tmp_path / TENCH / "y.png", 0)
    (tmp_path / "README.txt").touch()
    found = read_classes(tmp_path, "Two", (GOLDFISH, TENCH))
    assert found.classes == (GOLDFISH, TENCH)
    labels = {
        found.name(index)[len(str(tmp_path)) + 1 :]: found.labels[index] for index in range(3)
    }
    assert labels == {f"{GOLDFISH}/deep/x.png": 0, f"{TENCH}/deep/x.png": 1, f"{TENCH}/y.png": 1}


def test_numbers_are_numbers_and_not_text(write, tmp_path):
    synsets = tuple(f"n{number:08d}" for number in range(12))
    for number in range(12):
        write(tmp_path / str(number) / "x.png", 0)
    found = read_classes(tmp_path, "Twelve", synsets, numbered=True)
    assert [f"/{label}/x.png" for label in found.labels] == [
        found.name(index)[len(str(tmp_path)) :] for index in range(12)
    ]
    (tmp_path / "10").rename(tmp_path / synsets[10])
    again = read_classes(tmp_path, "Twelve", synsets, numbered=True)
    assert sorted(again.labels) == list(range(12))
    assert again.labels[11] == 10  # "n00000010" comes after all the numbers
    with pytest.raises(UserError, match="holds a folder '0', expected Twelve"):
        read_classes(tmp_path, "Twelve", synsets)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ((), "holds no folders, expected Two: a folder for each of its 2 classes, called as n0144"),
        ((TENCH,), rf"lacks 1 of the 2 classes of Two, such as {GOLDFISH}; unpack"),
        ((TENCH, GOLDFISH, "train"), "holds a folder 'train', expected Two"),
        ((TENCH, GOLDFISH, "2"), "holds a folder '2', expected Two: .* called 0 to 1 or as in"),
    ],
)
def test_a_folder_that_is_something_else_is_one_sentence(write, tmp_path, folders, words):
    for name in folders:
        write(tmp_path / name / "x.png", 0)
    numbered = "2" in folders
    with pytest.raises(UserError, match=words):
        read_classes(tmp_path, "Two", (TENCH, GOLDFISH), numbered=numbered)
    with pytest.raises(UserError, match=r"Cannot read .*nowhere .No such file.*expected Two"):
        read_classes(tmp_path / "nowhere", "Two", (TENCH,))
