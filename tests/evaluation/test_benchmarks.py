"""Each benchmark on a small copy of its folders; the expected figures are worked out by hand."""

import json
from typing import get_args

import numpy as np
import pytest

from cvt.cli.evaluate import BenchmarkFlag
from cvt.errors import UserError
from cvt.evaluation import BENCHMARKS, CorruptionScores, evaluate_benchmark
from cvt.evaluation.imagenet import ALEXNET_ERRORS, imagenet_synsets, subset_synsets

TWO = imagenet_synsets()[:2]


def tree(write, root, names, answers):
    """One picture in each folder, answered by its class unless `answers` says otherwise."""
    for name in names:
        number = int(name) if name.isdecimal() else imagenet_synsets().index(name)
        write(root / name / "x.jpeg", answers.get(number, number))
    return root


def test_v2_by_number(oracle, write, tmp_path):
    # 2 is the fourth guess of "999" and 7 the third of "5"; 10 and 20 are among no five.
    wrong = {2: 999, 7: 5, 10: 1, 20: 21}
    folder = tree(write, tmp_path, [str(number) for number in range(1000)], wrong)
    score = evaluate_benchmark(oracle(), folder, "v2")
    assert (score.top1, score.top5) == pytest.approx((99.6, 99.8))
    assert [index for index, each in enumerate(score.per_class) if each.accuracy == 0] == list(
        wrong
    )
    assert score.confusion[10, 1] == 1
    assert score.per_class[0].name == "n01440764"
    (folder / "1000").mkdir()
    with pytest.raises(UserError, match="holds a folder '1000', expected ImageNet-V2"):
        evaluate_benchmark(oracle(), folder, "v2")


def test_the_validation_set_by_wordnet_number_for_outputs_in_another_order(oracle, write, tmp_path):
    # Output 999 - n stands for class n: only class 5's picture answers with another one's.
    backwards = {number: 999 - number for number in range(1000)} | {5: 5}
    folder = tree(write, tmp_path, imagenet_synsets(), backwards)
    model = oracle(imagenet_synsets()[::-1])
    assert evaluate_benchmark(model, folder, "val").top1 == pytest.approx(99.9)


def test_a_lets_its_two_hundred_classes_compete(oracle, write, tmp_path):
    # ImageNet-A's first classes are outputs 6, 11, 13, 15, 17. The answer 0, which is none of
    # them, becomes 6, and 14 becomes 15, before 17, 22, 23 and 27.
    folder = tree(write, tmp_path, subset_synsets("a"), {6: 0, 11: 6, 13: 14})
    score = evaluate_benchmark(oracle(), folder, "a")
    assert (score.top1, score.top5, score.num_images) == pytest.approx((99, 99.5, 200))
    assert len(score.per_class) == 200
    wrong = [each.name for each in score.per_class if each.accuracy == 0]
    assert wrong == [imagenet_synsets()[11], imagenet_synsets()[13]]
    with pytest.raises(UserError, match="expected ImageNet-R"):
        evaluate_benchmark(oracle(), folder, "r")


def test_r_has_other_classes(oracle, write, tmp_path):
    # Its first classes are outputs 1, 2, 4: the answer 3 becomes 4.
    folder = tree(write, tmp_path, subset_synsets("r"), {1: 0, 2: 3})
    assert evaluate_benchmark(oracle(), folder, "r").top1 == pytest.approx(99.5)


@pytest.fixture
def val_pictures(write, tmp_path):
    """Pictures 1 to 5 of the validation set, flat, in class folders, or as the hub calls them."""
    write(tmp_path / "ILSVRC2012_val_00000005.JPEG", 511)  # 516, 850: only the sixth
    write(tmp_path / "n02105855" / "ILSVRC2012_val_00000003.JPEG", 229)  # 230, 231: the second
    write(tmp_path / "ILSVRC2012_val_00000004_n04067472.JPEG", 809)  # 809
    write(tmp_path / "n03028079" / "ILSVRC2012_val_00000002.JPEG", 795)  # 970, 795
    write(tmp_path / "ILSVRC2012_val_00000001.JPEG", 65)  # none: left out
    write(tmp_path / "ILSVRC2012_val_notes.JPEG", 0)
    (tmp_path / "ILSVRC2012_val_00000006.xml").touch()
    return tmp_path


def test_real_labels(oracle, val_pictures):
    score = evaluate_benchmark(oracle(), val_pictures, "real")
    assert (score.top1, score.top5) == (50, 75)
    assert (score.num_images, score.num_excluded, score.bad) == (4, 1, ())
    # Every answer is as sure as the others: exp(0) / sum over k < 1000 of exp(-0.01 k).
    confidence = 1 / np.exp(-0.01 * np.arange(1000)).sum()
    assert score.ece == pytest.approx(0.5 - confidence, abs=1e-6)
    plain = score.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    (val_pictures / "ILSVRC2012_val_00000002.JPEG").touch()
    with pytest.raises(UserError, match="expected each of ImageNet's 50,000 validation pictures"):
        evaluate_benchmark(oracle(), val_pictures, "real")


def test_real_labels_need_the_validation_sets_file_names(oracle, write, tmp_path):
    write(tmp_path / "a.JPEG", 0)
    with pytest.raises(UserError, match="holds no pictures called like ILSVRC2012_val_0000000"):
        evaluate_benchmark(oracle(), tmp_path, "real")
    write(tmp_path / "ILSVRC2012_val_00050001.JPEG", 0)
    with pytest.raises(UserError, match=r"val_00050001\.JPEG, expected each"):
        evaluate_benchmark(oracle(), tmp_path, "real")


@pytest.fixture
def two_classes(monkeypatch):
    """ImageNet-C with two classes instead of a thousand."""
    monkeypatch.setattr("cvt.evaluation.imagenet.imagenet_synsets", lambda: TWO)


def corrupted(write, root, wrong):
    """A picture a class: `wrong` says how many of the two come second, by corruption."""
    for corruption, counts in wrong.items():
        for severity, count in enumerate(counts, start=1):
            for number, synset in enumerate(TWO):
                answer = (number - (number < count)) % 1000
                write(root / corruption / str(severity) / synset / "x.JPEG", answer)
    return root


@pytest.mark.usefixtures("two_classes")
def test_c_averages_severities_then_weighs_by_alexnet_then_averages_corruptions(
    oracle, write, tmp_path
):
    wrong = dict.fromkeys(ALEXNET_ERRORS, (0, 0, 0, 0, 0))
    wrong |= {"gaussian_noise": (0, 1, 1, 2, 2), "jpeg_compression": (2, 2, 2, 2, 2)}
    folder = corrupted(write, tmp_path, wrong)
    write(folder / "speckle_noise" / "1" / TWO[0] / "x.JPEG", 500)
    (folder / "fog" / "3" / TWO[1] / "broken.JPEG").touch()
    # With the crop, the middle of the pictures would be read.
    score = evaluate_benchmark(oracle(crop_pct=0.5), folder, "c")
    assert score.errors["gaussian_noise"] == (0, 50, 50, 100, 100)
    assert score.mean_error == pytest.approx((60 + 100) / 15)
    assert score.corruption_errors["gaussian_noise"] == pytest.approx(67.6874)  # 60 / 0.886428
    assert score.mce == pytest.approx((67.6874 + 164.8805) / 15)  # 100 / 0.6065
    assert (score.num_images, len(score.bad)) == (150, 1)
    plain = score.to_dict()
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.usefixtures("two_classes")
def test_a_part_of_c_has_no_mce(oracle, write, tmp_path):
    corrupted(write, tmp_path / "noise", {"gaussian_noise": (1, 1, 1, 1, 1)})
    corrupted(write, tmp_path / "weather", {"snow": (0, 0, 0, 0, 0)})
    score = evaluate_benchmark(oracle(), tmp_path, "c")
    assert list(score.errors) == ["gaussian_noise", "snow"]
    assert (score.mean_error, score.mce) == (25, None)
    assert "mce" not in score.to_dict()
    (tmp_path / "weather" / "frost" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="frost has no folder 2"):
        evaluate_benchmark(oracle(), tmp_path, "c")


def test_alexnet_is_the_measure_of_c():
    errors = {name: (100 * error,) * 5 for name, error in ALEXNET_ERRORS.items()}
    score = CorruptionScores(errors=errors, num_images=3_750_000, bad=())
    assert score.mce == pytest.approx(100)
    assert score.mean_error == pytest.approx(100 * sum(ALEXNET_ERRORS.values()) / 15)


def test_mistakes_are_one_sentence(oracle, write, tmp_path):
    write(tmp_path / "cats" / "x.png", 0)
    for benchmark in ("val", "v2", "a", "r", "c"):
        with pytest.raises(UserError, match=r"holds (a|the) folder '?cats'?, expected ImageNet"):
            evaluate_benchmark(oracle(), tmp_path, benchmark)
    with pytest.raises(UserError, match="with 10 outputs"):
        evaluate_benchmark(oracle(num_classes=10), tmp_path, "v2")
    with pytest.raises(UserError, match=r"Unknown benchmark 'rael'.*Did you mean 'real'"):
        evaluate_benchmark(oracle(), tmp_path, "rael")


def test_the_command_line_knows_the_same_benchmarks():
    literal = get_args(get_args(BenchmarkFlag)[0])[0]
    assert get_args(literal) == tuple(BENCHMARKS)
