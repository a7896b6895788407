"""Each benchmark on a small copy of its folders; the expected figures are worked out by hand."""

import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from cvt.cli.evaluate import evaluate as verb
from cvt.errors import UserError
from cvt.evaluation import (
    ALEXNET_ERRORS,
    BENCHMARKS,
    Batching,
    CorruptionScores,
    ModelUnderTest,
    evaluate,
    find_corruptions,
    imagenet_outputs,
    imagenet_synsets,
    read_classes,
    real_labels,
    score_corruptions,
    subset_synsets,
)
from cvt.runtime import World
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


TWO = imagenet_synsets()[:2]


def tree(write, root, names, answers):
    """One image in each folder, answered by its class unless `answers` says otherwise."""
    for name in names:
        number = int(name) if name.isdecimal() else imagenet_synsets().index(name)
        write(root / name / "x.jpeg", answers.get(number, number))
    return root


def test_v2_by_number(oracle, write, tmp_path):
    # 2 is the fourth guess of "999" and 7 the third of "5"; 10 and 20 are among no five.
    wrong = {2: 999, 7: 5, 10: 1, 20: 21}
    folder = tree(write, tmp_path, [str(number) for number in range(1000)], wrong)
    score = evaluate(oracle(), folder, benchmark="v2")
    assert (score.top1, score.top5) == pytest.approx((99.6, 99.8))
    assert [index for index, each in enumerate(score.per_class) if each.accuracy == 0] == list(
        wrong
    )
    assert score.confusion[10, 1] == 1
    assert score.per_class[0].name == "n01440764"
    (folder / "1000").mkdir()
    with pytest.raises(UserError, match="holds a folder '1000', expected ImageNet-V2"):
        evaluate(oracle(), folder, benchmark="v2")


def test_the_validation_set_by_wordnet_number_for_outputs_in_another_order(oracle, write, tmp_path):
    # Output 999 - n stands for class n: only class 5's image answers with another one's.
    backwards = {number: 999 - number for number in range(1000)} | {5: 5}
    folder = tree(write, tmp_path, imagenet_synsets(), backwards)
    model = oracle(imagenet_synsets()[::-1])
    assert evaluate(model, folder, benchmark="val").top1 == pytest.approx(99.9)


def test_a_lets_its_two_hundred_classes_compete(oracle, write, tmp_path):
    # ImageNet-A's first classes are outputs 6, 11, 13, 15, 17. The answer 0, which is none of
    # them, becomes 6, and 14 becomes 15, before 17, 22, 23 and 27.
    folder = tree(write, tmp_path, subset_synsets("a"), {6: 0, 11: 6, 13: 14})
    score = evaluate(oracle(), folder, benchmark="a")
    assert (score.top1, score.top5, score.num_images) == pytest.approx((99, 99.5, 200))
    assert len(score.per_class) == 200
    wrong = [each.name for each in score.per_class if each.accuracy == 0]
    assert wrong == [imagenet_synsets()[11], imagenet_synsets()[13]]
    with pytest.raises(UserError, match="expected ImageNet-R"):
        evaluate(oracle(), folder, benchmark="r")


def test_r_has_other_classes(oracle, write, tmp_path):
    # Its first classes are outputs 1, 2, 4: the answer 3 becomes 4.
    folder = tree(write, tmp_path, subset_synsets("r"), {1: 0, 2: 3})
    assert evaluate(oracle(), folder, benchmark="r").top1 == pytest.approx(99.5)


@pytest.fixture
def val_images(write, tmp_path):
    """Images 1 to 5 of the validation set, flat, in class folders, or as the hub calls them."""
    write(tmp_path / "ILSVRC2012_val_00000005.JPEG", 511)  # 516, 850: only the sixth
    write(tmp_path / "n02105855" / "ILSVRC2012_val_00000003.JPEG", 229)  # 230, 231: the second
    write(tmp_path / "ILSVRC2012_val_00000004_n04067472.JPEG", 809)  # 809
    write(tmp_path / "n03028079" / "ILSVRC2012_val_00000002.JPEG", 795)  # 970, 795
    write(tmp_path / "ILSVRC2012_val_00000001.JPEG", 65)  # none: left out
    write(tmp_path / "ILSVRC2012_val_notes.JPEG", 0)
    (tmp_path / "ILSVRC2012_val_00000006.xml").touch()
    return tmp_path


def test_real_labels(oracle, val_images):
    score = evaluate(oracle(), val_images, benchmark="real")
    assert (score.top1, score.top5) == (50, 75)
    assert (score.num_images, score.num_excluded, score.bad) == (4, 1, ())
    # Every answer is as sure as the others: exp(0) / sum over k < 1000 of exp(-0.01 k).
    confidence = 1 / np.exp(-0.01 * np.arange(1000)).sum()
    assert score.ece == pytest.approx(0.5 - confidence, abs=1e-6)
    plain = score.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    (val_images / "ILSVRC2012_val_00000002.JPEG").touch()
    with pytest.raises(UserError, match="expected each of ImageNet's 50,000 validation images"):
        evaluate(oracle(), val_images, benchmark="real")


def test_real_labels_need_the_validation_sets_file_names(oracle, write, tmp_path):
    write(tmp_path / "a.JPEG", 0)
    with pytest.raises(UserError, match="holds no images called like ILSVRC2012_val_0000000"):
        evaluate(oracle(), tmp_path, benchmark="real")
    write(tmp_path / "ILSVRC2012_val_00050001.JPEG", 0)
    with pytest.raises(UserError, match=r"val_00050001\.JPEG, expected each"):
        evaluate(oracle(), tmp_path, benchmark="real")


def score_two(model, folder):
    """What a model is worth on ImageNet-C with two classes instead of a thousand."""
    asked = ModelUnderTest(model, Batching(), World())
    return score_corruptions(find_corruptions(folder), asked.answers, TWO)


def corrupted(write, root, wrong):
    """An image a class: `wrong` says how many of the two come second, by corruption."""
    for corruption, counts in wrong.items():
        for severity, count in enumerate(counts, start=1):
            for number, synset in enumerate(TWO):
                answer = (number - (number < count)) % 1000
                write(root / corruption / str(severity) / synset / "x.JPEG", answer)
    return root


def test_c_averages_severities_then_weighs_by_alexnet_then_averages_corruptions(
    oracle, write, tmp_path
):
    wrong = dict.fromkeys(ALEXNET_ERRORS, (0, 0, 0, 0, 0))
    wrong |= {"gaussian_noise": (0, 1, 1, 2, 2), "jpeg_compression": (2, 2, 2, 2, 2)}
    folder = corrupted(write, tmp_path, wrong)
    write(folder / "speckle_noise" / "1" / TWO[0] / "x.JPEG", 500)
    (folder / "fog" / "3" / TWO[1] / "broken.JPEG").touch()
    score = score_two(oracle(), folder)
    assert score.errors["gaussian_noise"] == (0, 50, 50, 100, 100)
    assert score.mean_error == pytest.approx((60 + 100) / 15)
    assert score.corruption_errors["gaussian_noise"] == pytest.approx(67.6874)  # 60 / 0.886428
    assert score.mce == pytest.approx((67.6874 + 164.8805) / 15)  # 100 / 0.6065
    assert (score.num_images, len(score.bad)) == (150, 1)
    plain = score.to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_a_part_of_c_has_no_mce(oracle, write, tmp_path):
    corrupted(write, tmp_path / "noise", {"gaussian_noise": (1, 1, 1, 1, 1)})
    corrupted(write, tmp_path / "weather", {"snow": (0, 0, 0, 0, 0)})
    score = score_two(oracle(), tmp_path)
    assert list(score.errors) == ["gaussian_noise", "snow"]
    assert (score.mean_error, score.mce) == (25, None)
    assert "mce" not in score.to_dict()
    (tmp_path / "weather" / "frost" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="frost has no folder 2"):
        evaluate(oracle(), tmp_path, benchmark="c")


def test_images_of_c_are_taken_whole(oracle, write, tmp_path):
    """With the crop, their middle would be read, which says 0."""
    tree(write, tmp_path / "fog" / "1", imagenet_synsets(), {5: 6})
    for severity in "2345":
        (tmp_path / "fog" / severity).symlink_to(tmp_path / "fog" / "1")
    score = evaluate(oracle(crop_pct=0.5), tmp_path, benchmark="c")
    assert score.errors["fog"] == pytest.approx((0.1,) * 5)
    assert score.num_images == 5000


def test_alexnet_is_the_measure_of_c():
    errors = {name: (100 * error,) * 5 for name, error in ALEXNET_ERRORS.items()}
    score = CorruptionScores(errors=errors, num_images=3_750_000, bad=())
    assert score.mce == pytest.approx(100)
    assert score.mean_error == pytest.approx(100 * sum(ALEXNET_ERRORS.values()) / 15)


def test_mistakes_are_one_sentence(oracle, write, tmp_path):
    write(tmp_path / "cats" / "x.png", 0)
    for benchmark in ("val", "v2", "a", "r", "c"):
        with pytest.raises(UserError, match=r"holds (a|the) folder '?cats'?, expected ImageNet"):
            evaluate(oracle(), tmp_path, benchmark=benchmark)
    with pytest.raises(UserError, match="with 10 outputs"):
        evaluate(oracle(num_classes=10), tmp_path, benchmark="v2")
    with pytest.raises(UserError, match=r"Unknown benchmark 'rael'.*Did you mean 'real'"):
        evaluate(oracle(), tmp_path, benchmark="rael")


def test_the_command_line_knows_the_same_benchmarks():
    flag = get_type_hints(verb)["benchmark"]
    assert get_args(get_args(flag)[0]) == tuple(BENCHMARKS)
